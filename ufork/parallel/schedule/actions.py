"""Actions of a schedule: what a stage runs, how long it takes, and what it needs from another stage.

All replicas of a stage run the same list of actions in lockstep, since ZeRO-3's gathers are collective. A *micro-batch*
of a stage is thus one packed sequence on each replica: sequences index * dp to index * dp + dp - 1 of its task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import lcm

from ufork.parallel.layout import BRANCHES, TASK_OF, Layout, Stage
from ufork.vocabulary import Task


class Pass(StrEnum):
    """The two directions of a training step."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True)
class Action:
    """One pass of one micro-batch through one stage."""

    direction: Pass
    task: Task
    index: int
    """Counts the task's micro-batches in a step from 0, on each replica of the stage."""

    @property
    def micro_batch(self) -> str:
        """Name for messages, for example "generation micro-batch 3"."""
        return f"{self.task} micro-batch {self.index}"

    def __str__(self) -> str:
        return f"{self.direction} of {self.task} {self.index}"


Schedule = Mapping[Stage, tuple[Action, ...]]
"""List of actions of each present stage in a step."""


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Expected durations; the order of a schedule depends on their proportions only, so estimates suffice."""

    seconds: Mapping[tuple[Stage, Task, Pass], float]
    """Seconds of one packed sequence on one replica of the stage."""
    transfer_seconds: float = 0.0
    """Seconds from the end of a pass in one stage to the arrival of its result in the next."""

    def of(self, stage: Stage, action: Action) -> float:
        """Seconds that `action` keeps a replica of `stage` busy."""
        return self.seconds[stage, action.task, action.direction]

    def both(self, stage: Stage, task: Task) -> float:
        """Seconds of a forward and a backward pass."""
        return sum(self.seconds[stage, task, direction] for direction in Pass)


def receiver_of(stage: Stage, action: Action) -> Stage | None:
    """Returns the stage that needs the result of `action` of `stage`, if that stage trains."""
    if stage is Stage.TRUNK and action.direction is Pass.FORWARD:
        return BRANCHES[action.task]
    return Stage.TRUNK if stage in TASK_OF and action.direction is Pass.BACKWARD else None


def sender_of(stage: Stage, action: Action) -> Stage | None:
    """Returns the stage whose result `action` of `stage` needs."""
    return receiver_of(stage, Action(_OPPOSITE[action.direction], action.task, action.index))


def inputs_of(layout: Layout, stage: Stage, action: Action) -> tuple[tuple[Stage, Action], ...]:
    """Returns the actions of another stage whose results `action` needs: those that share a sequence with it."""
    sender = sender_of(stage, action)
    if sender is None:
        return ()
    dp, sender_dp = layout.shapes[stage].dp, layout.shapes[sender].dp
    first, last = action.index * dp // sender_dp, (action.index * dp + dp - 1) // sender_dp
    return tuple((sender, Action(action.direction, action.task, index)) for index in range(first, last + 1))


def room_for(layout: Layout, stage: Stage, action: Action, *, buffers: int) -> tuple[Stage, Action] | None:
    """Returns the action of another stage that must have begun before `action` has room for its results.

    Every lcm(dp, receiver's dp)-th sequence is sent between the same two replicas.

    Args:
        layout: the stages.
        stage: the stage that runs `action`.
        action: an action of it.
        buffers: sequences that may be on their way between two replicas in one direction.
    """
    receiver = receiver_of(stage, action)
    if receiver is None:
        return None
    dp, receiver_dp = layout.shapes[stage].dp, layout.shapes[receiver].dp
    sequence = action.index * dp + dp - 1 - buffers * lcm(dp, receiver_dp)
    return (receiver, Action(action.direction, action.task, sequence // receiver_dp)) if sequence >= 0 else None


_OPPOSITE = {Pass.FORWARD: Pass.BACKWARD, Pass.BACKWARD: Pass.FORWARD}
