"""How far a stage has come, agreed by all ranks: its steps, or its seconds where the recipe limits them; and stops."""

from dataclasses import dataclass
from typing import Protocol

from ufork.train.config import TrainConfig


class Ranks(Protocol):
    """Those who must agree."""

    @property
    def is_leader(self) -> bool:
        """Whether this rank's clock counts."""
        ...

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks."""
        ...


@dataclass(frozen=True)
class Progress:
    """The same on all ranks."""

    share: float
    """0 at the start, 1 when the steps or the seconds are used up, whichever comes first."""
    stopping: bool
    """Whether some rank was asked to stop."""


def progress_of(config: TrainConfig, *, steps: int, seconds: float, asked_to_stop: bool, ranks: Ranks) -> Progress:
    """All ranks must call.

    Args:
        config: of the stage.
        steps: taken so far.
        seconds: this rank's since the stage began; the leader's are taken.
        asked_to_stop: this rank was.
        ranks: those of the stage.
    """
    leaders_seconds, asked = ranks.sum(seconds if ranks.is_leader else 0.0, float(asked_to_stop))
    share = steps / config.steps
    if config.limit_seconds is not None:
        share = max(share, leaders_seconds / config.limit_seconds)
    return Progress(share, asked > 0)
