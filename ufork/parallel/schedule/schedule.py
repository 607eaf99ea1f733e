"""Orders the actions of each stage of the Y: pure, and the same on every rank.

    Layout + seconds of each pass + limit in flight -> for each stage the list that all its replicas run

A branch holds the loss, so it runs each forward directly followed by its backward, in the order of arrival; a colocated
model likewise, alternating between tasks. Only the trunk has a choice, which `trunk_order.py` makes.
"""

from collections.abc import Mapping
from itertools import count

from ufork.parallel.layout import Layout, Stage
from ufork.parallel.schedule.actions import Action, Pass, StageTimes
from ufork.parallel.schedule.in_flight import require_progress
from ufork.parallel.schedule.trunk_order import trunk_order
from ufork.vocabulary import Task


def make_schedule(
    layout: Layout, times: StageTimes, *, in_flight: int, trunk_trains: bool = True
) -> dict[Stage, tuple[Action, ...]]:
    """Returns the list of every present stage for one step.

    Args:
        layout: the stages and their packed sequences.
        times: expected seconds; all ranks must pass the same, since the trunk's order follows from them.
        in_flight: sequences of a trunk replica that may be between their forward and their backward pass. It does not
            limit a frozen trunk, which keeps nothing: the executor bounds how far that runs ahead.
        trunk_trains: whether gradients return to the trunk; a frozen one has forwards only.

    Raises:
        ConfigError: a branch needs more sequences for one micro-batch than `in_flight` lets the trunk keep.
    """
    if trunk_trains:
        require_progress(layout, in_flight)
    schedule: dict[Stage, tuple[Action, ...]] = {
        stage: _forward_backward(layout.num_micro_batches(stage)) for stage in layout.shapes if stage is not Stage.TRUNK
    }
    if Stage.TRUNK in layout.shapes:
        trunk = trunk_order(layout, times, schedule, in_flight=in_flight, trunk_trains=trunk_trains)
        schedule = {Stage.TRUNK: trunk, **schedule}
    return schedule


def task_order(num_sequences: Mapping[Task, int]) -> list[Task]:
    """Returns the tasks of a rank's sequences, spread evenly: the same on every rank, so that all gather together."""
    positions = [((number + 0.5) / total, task) for task, total in num_sequences.items() for number in range(total)]
    return [task for _, task in sorted(positions)]


def _forward_backward(num_sequences: Mapping[Task, int]) -> tuple[Action, ...]:
    numbers = {task: count() for task in num_sequences}
    micro_batches = [(task, next(numbers[task])) for task in task_order(num_sequences)]
    return tuple(Action(direction, *micro_batch) for micro_batch in micro_batches for direction in Pass)
