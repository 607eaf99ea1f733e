"""The order in which each stage of the Y runs its micro-batches: pure, and the same on every rank.

    Layout + seconds of each pass + limit in flight -> for each stage the actions that all its replicas run

A branch holds the loss, so it runs each forward directly followed by its backward, first come first served; a colocated
model likewise, its tasks taking turns. Only the trunk has a choice, which `trunk_order.py` makes.
"""

from collections.abc import Iterable, Mapping
from math import gcd

from ufork.errors import ConfigError
from ufork.parallel.layout import BRANCHES, Layout, Stage
from ufork.parallel.schedule.actions import Action, Pass, StageTimes
from ufork.parallel.schedule.trunk_order import least_in_flight, trunk_order
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
    if Stage.TRUNK in layout.shapes and trunk_trains:
        _require_progress(layout, in_flight)
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


def _require_progress(layout: Layout, in_flight: int) -> None:
    needed = {task: least_in_flight(layout, task) for task in layout.global_batch_size}
    task = max(needed, key=lambda task: needed[task])
    if needed[task] > in_flight:
        trunk, branch = layout.shapes[Stage.TRUNK].dp, layout.shapes[BRANCHES[task]].dp
        raise ConfigError(
            f"layout.in_flight={in_flight} would wait for ever: the {branch} replicas of the stage {task} start"
            f" together, so each of the {trunk} of the trunk must hold ({trunk} + {branch} - {gcd(trunk, branch)}) /"
            f" {trunk} = {needed[task]} rows (rounded up) for a gradient to return; set layout.in_flight={needed[task]}"
            f" or more, or bring trunk.dp={trunk} and {task}.dp={branch} closer"
        )
