"""The order in which each stage of the Y runs its micro-batches: pure, and the same on every rank.

    Layout + seconds of each pass + limit in flight -> for each stage the actions that all its replicas run

A branch holds the loss, so it runs each forward directly followed by its backward, first come first served; a colocated
model likewise, its tasks taking turns. Only the trunk has a choice, which `trunk_order.py` makes.
"""

from collections.abc import Iterable, Mapping

from ufork.parallel.layout import Layout, Stage
from ufork.parallel.schedule.actions import Action, Pass, StageTimes
from ufork.parallel.schedule.in_flight import require_progress
from ufork.parallel.schedule.trunk_order import trunk_order
from ufork.vocabulary import Task


def make_schedule(
    layout: Layout, times: StageTimes, *, in_flight: int, trunk_trains: bool = True
) -> dict[Stage, tuple[Action, ...]]:
    """What every present stage does in a step.

    Args:
        layout: the stages and their rows.
        times: expected seconds; all ranks must pass the same, since the trunk's order follows from them.
        in_flight: rows of a trunk replica that may be between their forward and their backward pass; of a frozen trunk,
            between its forward and the branch's.
        trunk_trains: whether gradients return to the trunk; a frozen one has forwards only.

    Raises:
        ConfigError: a branch needs more rows for one micro-batch than `in_flight` lets the trunk keep.
    """
    if trunk_trains:
        require_progress(layout, in_flight)
    schedule = {}
    for stage in layout.shapes:
        if stage is Stage.TRUNK:
            turns = trunk_order(layout, times, in_flight=in_flight, trunk_trains=trunk_trains)
        else:
            turns = [(direction, task) for task in task_order(layout.num_micro_batches(stage)) for direction in Pass]
        schedule[stage] = _numbered(turns)
    return schedule


def task_order(num_sequences: Mapping[Task, int]) -> list[Task]:
    """Tasks of a rank's rows in turn, spread evenly: the same on every rank, so that all gather the same weights."""
    coordinates = [
        ((sequence + 0.5) / number, task) for task, number in num_sequences.items() for sequence in range(number)
    ]
    return [task for _, task in sorted(coordinates)]


def _numbered(turns: Iterable[tuple[Pass, Task]]) -> tuple[Action, ...]:
    taken: dict[tuple[Pass, Task], int] = {}
    actions = []
    for direction, task in turns:
        index = taken.get((direction, task), 0)
        taken[direction, task] = index + 1
        actions.append(Action(direction, task, index))
    return tuple(actions)
