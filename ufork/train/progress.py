"""Progress of a phase, agreed by all ranks: by steps, or by seconds if the recipe limits them; and requests to stop."""

from dataclasses import dataclass
from typing import Protocol

from ufork.train.config import TrainConfig


class Ranks(Protocol):
    """The ranks that must agree."""

    @property
    def is_leader(self) -> bool:
        """Whether this rank's clock is the one that counts."""
        ...

    def sum(self, *values: float) -> list[float]:
        """Returns the sums of `values` over all ranks."""
        ...


@dataclass(frozen=True)
class Progress:
    """Progress of a phase, the same on all ranks."""

    share: float
    """Share of the phase that is done: 0 at the start, 1 when steps or seconds are used up, whichever is first."""
    stopping: bool
    """Whether some rank was asked to stop."""


def progress_of(config: TrainConfig, *, steps: int, seconds: float, asked_to_stop: bool, ranks: Ranks) -> Progress:
    """Returns the progress of a phase, the same on all ranks, which must all call.

    Args:
        config: how the phase trains.
        steps: steps taken so far.
        seconds: seconds since the phase began, by this rank's clock; the leader's count.
        asked_to_stop: whether this rank was asked to stop.
        ranks: ranks with work in the phase.
    """
    leaders_seconds, asked = ranks.sum(seconds if ranks.is_leader else 0.0, float(asked_to_stop))
    share = steps / config.steps
    if config.limit_seconds is not None:
        share = max(share, leaders_seconds / config.limit_seconds)
    return Progress(share, asked > 0)
