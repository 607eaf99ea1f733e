"""The Y-schedule against its floor: `python -m benchmarks.y_schedule`.

Stage times are fixed (`sleeping_stages.py`), so that the schedule, the executor and the transport are measured. Two
other orders run on the same transport: all understanding sequences before all generation sequences (one forward, one
backward), and GPipe (arXiv 1811.06965), all forwards before all backwards everywhere.

The last line is one JSON object: step time over the floor of docs/schedule.md.
"""

import argparse
import json
import os
from collections.abc import Sequence

from benchmarks.sleeping_stages import Transport, measure
from pipelines.launch.ranks import prepare_environment
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import BRANCHES, Layout, Stage, make_layout
from ufork.parallel.schedule.actions import Action, Pass, StageTimes
from ufork.parallel.schedule.schedule import make_schedule, task_order
from ufork.parallel.schedule.simulation import floor_seconds
from ufork.vocabulary import Task

TRUNK_MS = (10, 20)
"""Forward and backward of the trunk, in milliseconds."""
CASES = {
    "balanced": {Task.UNDERSTANDING: (20, 40), Task.GENERATION: (20, 40)},
    "uneven": {Task.UNDERSTANDING: (10, 20), Task.GENERATION: (30, 60)},
}
"""Forward and backward of each branch, in milliseconds: all as busy as the trunk; generation three times the other."""
ORDERS = ("y", "und_then_gen", "gpipe")


def main() -> None:
    """Measures each case in each order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=32, help="packed sequences per step, half of each task")
    parser.add_argument("--steps", type=int, default=5, help="steps measured, after one warm-up step")
    parser.add_argument("--in-flight", type=int, default=6)
    arguments = parser.parse_args()
    prepare_environment(os.environ, num_local_ranks=3)
    layout = _layout(arguments.sequences)
    over: dict[str, dict[str, float]] = {order: {} for order in ORDERS}
    for case, branches in CASES.items():
        times = _times(branches)
        floor = floor_seconds(layout, times)
        for order in ORDERS:
            actions = _actions(order, layout, times, arguments.in_flight)
            seconds = measure(actions, layout, times, Transport(), steps=arguments.steps)
            over[order][case] = round(seconds / floor, 4)
            print(f"{case:8} {order:12} {seconds * 1e3:7.1f} ms a step, floor {floor * 1e3:.1f} ms")
    print(json.dumps({"over_floor": over["y"], **{f"{order}_over_floor": over[order] for order in ORDERS[1:]}}))


def _layout(sequences: int) -> Layout:
    return make_layout(LayoutConfig(kind="forked"), num_ranks=3, global_batch_size=dict.fromkeys(Task, sequences // 2))


def _times(branches: dict[Task, tuple[int, int]]) -> StageTimes:
    milliseconds = {(Stage.TRUNK, task): TRUNK_MS for task in branches}
    milliseconds |= {(BRANCHES[task], task): both for task, both in branches.items()}
    return StageTimes(
        seconds={
            (*key, direction): each / 1e3
            for key, both in milliseconds.items()
            for direction, each in zip(Pass, both, strict=True)
        }
    )


def _actions(order: str, layout: Layout, times: StageTimes, in_flight: int) -> dict[Stage, tuple[Action, ...]]:
    schedule = make_schedule(layout, times, in_flight=in_flight)
    if order == "y":
        return schedule
    tasks = task_order(layout.global_batch_size)
    if order == "und_then_gen":
        return {**schedule, Stage.TRUNK: _one_forward_one_backward(sorted(tasks, reverse=True), in_flight)}
    gpipe = _one_forward_one_backward(tasks, len(tasks))
    return {
        stage: tuple(action for action in gpipe if stage in (Stage.TRUNK, BRANCHES[action.task])) for stage in schedule
    }


def _one_forward_one_backward(tasks: Sequence[Task], in_flight: int) -> tuple[Action, ...]:
    """Forwards up to the limit, then alternately a backward and a forward; without a limit this is GPipe."""
    numbers = {task: iter(range(len(tasks))) for task in tasks}
    sequences = [(task, next(numbers[task])) for task in tasks]
    actions = [Action(Pass.FORWARD, *sequence) for sequence in sequences[:in_flight]]
    for number, sequence in enumerate(sequences):
        actions.append(Action(Pass.BACKWARD, *sequence))
        actions += [Action(Pass.FORWARD, *later) for later in sequences[number + in_flight : number + in_flight + 1]]
    return tuple(actions)


if __name__ == "__main__":
    main()
