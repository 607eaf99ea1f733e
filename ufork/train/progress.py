"""How far a stage has come, agreed by all ranks: the steps, or the seconds where the recipe limits them."""

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


def progress_of(config: TrainConfig, *, steps: int, seconds: float, ranks: Ranks) -> float:
    """0 at the start, 1 when the steps or the seconds are used up, whichever comes first.

    Without a limit no rank asks another; with one, all must call.

    Args:
        config: of the stage.
        steps: taken so far.
        seconds: this rank's since the stage began; the leader's are taken.
        ranks: those of the stage.
    """
    share = steps / config.steps
    if config.limit_seconds is None:
        return share
    (leaders_seconds,) = ranks.sum(seconds if ranks.is_leader else 0.0)
    return max(share, leaders_seconds / config.limit_seconds)
