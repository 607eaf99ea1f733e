"""The Y-schedule against its floor: `python -m benchmarks.y_schedule`.

Stage times are held fixed: a stand-in engine sleeps for as long as a pass is to take, so that no core is needed and
what is measured is the schedule, the executor and the transport. The rest is real: a process per stage, the bridge, the
link with its tensors, the runners. Beside the schedule run, on the same transport, all understanding rows before all
generation rows (one forward, one backward), and GPipe (arXiv 1811.06965): all forwards before all backwards everywhere.

The last line is one JSON object: step time over the floor of docs/schedule.md.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

from pipelines.launch import prepare_environment, process_context
from pipelines.local_ranks import start_local_ranks
from ufork.parallel.actions import Action, Pass, StageTimes
from ufork.parallel.address import RankAddress
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import BRANCHES, Layout, Stage, make_layout
from ufork.parallel.schedule import make_schedule, task_order
from ufork.parallel.simulation import floor_seconds
from ufork.vocabulary import Task

ROW_TOKENS, WIDTH = 256, 256
TRUNK_MS = (10, 20)
"""Forward and backward of the trunk."""
CASES = {
    "balanced": {Task.UNDERSTANDING: (20, 40), Task.GENERATION: (20, 40)},
    "uneven": {Task.UNDERSTANDING: (10, 20), Task.GENERATION: (30, 60)},
}
"""Forward and backward of each branch, in milliseconds: all as busy as the trunk; generation three times the other."""
ORDERS = ("y", "und_then_gen", "gpipe")


def main() -> None:
    """Measures each case in each order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32, help="per step, half of each task")
    parser.add_argument("--steps", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--in-flight", type=int, default=6)
    arguments = parser.parse_args()
    prepare_environment(os.environ, num_local_ranks=3)
    layout = _layout(arguments.rows)
    over: dict[str, dict[str, float]] = {order: {} for order in ORDERS}
    for case, branches in CASES.items():
        times = _times(branches)
        floor = floor_seconds(layout, times)
        for order in ORDERS:
            actions = _actions(order, layout, times, arguments.in_flight)
            seconds = measure(actions, layout, times, steps=arguments.steps)
            over[order][case] = round(seconds / floor, 4)
            print(f"{case:8} {order:12} {seconds * 1e3:7.1f} ms a step, floor {floor * 1e3:.1f} ms")
    print(json.dumps({"over_floor": over["y"], **{f"{order}_over_floor": over[order] for order in ORDERS[1:]}}))


def measure(actions: dict[Stage, tuple[Action, ...]], layout: Layout, times: StageTimes, *, steps: int) -> float:
    """Median seconds of a step in which each stage runs its list."""
    by_rank = start_local_ranks(_run_rank, len(layout.places), actions, layout, times, steps, context=process_context())
    return statistics.median(max(seconds) for seconds in list(zip(*by_rank, strict=True))[1:])


def _layout(rows: int) -> Layout:
    return make_layout(LayoutConfig(kind="forked"), num_ranks=3, rows_per_step=dict.fromkeys(Task, rows // 2))


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
    turns = task_order(layout.rows_per_step)
    if order == "und_then_gen":
        return {**schedule, Stage.TRUNK: _one_forward_one_backward(sorted(turns, reverse=True), in_flight)}
    gpipe = _one_forward_one_backward(turns, len(turns))
    return {
        stage: tuple(action for action in gpipe if stage in (Stage.TRUNK, BRANCHES[action.task])) for stage in schedule
    }


def _one_forward_one_backward(tasks: Sequence[Task], in_flight: int) -> tuple[Action, ...]:
    """Forwards up to the limit, then in turn; with a limit of all rows this is GPipe."""
    numbers = {task: iter(range(len(tasks))) for task in tasks}
    rows = [(task, next(numbers[task])) for task in tasks]
    actions = [Action(Pass.FORWARD, *row) for row in rows[:in_flight]]
    for number, row in enumerate(rows):
        actions.append(Action(Pass.BACKWARD, *row))
        actions += [Action(Pass.FORWARD, *later) for later in rows[number + in_flight : number + in_flight + 1]]
    return tuple(actions)


class _SleepingEngine:
    """Takes as long as the passes of a stage are to take."""

    trains, gradient_scale = True, 1

    def __init__(self, stage: Stage, times: StageTimes) -> None:
        self.stage, self.times, self.task = stage, times, Task.UNDERSTANDING

    def forward(self, row: Any, num_targets: float = 1.0, hidden: Any = None) -> Any:
        import torch

        self.task = row.task
        time.sleep(self.times.seconds[self.stage, row.task, Pass.FORWARD])
        if hidden is None:
            return torch.zeros(ROW_TOKENS, WIDTH, requires_grad=True) * 1
        return hidden.sum(), hidden.detach().sum()

    def backward(self, loss: Any) -> None:
        # The trunk's passes are equally long for both tasks, so it need not know whose this one is.
        time.sleep(self.times.seconds[self.stage, self.task, Pass.BACKWARD])
        loss.backward()


def _run_rank(
    address: RankAddress,
    actions: dict[Stage, tuple[Action, ...]],
    layout: Layout,
    times: StageTimes,
    steps: int,
) -> list[float]:
    """Seconds of each step on this rank, the first one not warmed up."""
    import torch

    from ufork.parallel.executor import BranchRunner, TrunkRunner, run_actions
    from ufork.parallel.link import Link, Wire
    from ufork.parallel.row_format import RowFormat
    from ufork.parallel.trace import Tracer
    from ufork.parallel.world import join_world

    torch.set_num_threads(1)
    rows = {task: [_row(task)] * number for task, number in layout.rows_per_step.items()}
    with join_world(address, LayoutConfig(kind="forked"), timeout_seconds=60) as world:
        bridge, stage, tracer = world.open_bridge(layout, "benchmark"), world.place.stage, Tracer()
        wire = Wire(rows=RowFormat(row_tokens=ROW_TOKENS, codes_per_position=4), width=WIDTH, dtype=torch.float32)
        link = Link(bridge, wire, world.place, world.tp_group, tracer)
        engine: Any = _SleepingEngine(stage, times)
        seconds = []
        for _ in range(steps + 1):
            bridge.sum(0.0)
            start = time.perf_counter()
            if stage is Stage.TRUNK:
                runner: Any = TrunkRunner(engine, link, rows, actions[stage], in_flight=len(actions[stage]))
            else:
                targets = dict.fromkeys(Task, 1.0)
                runner = BranchRunner(
                    engine,
                    link,
                    targets,
                    actions[stage],
                    trunk_trains=True,
                    in_flight=len(actions[stage]),
                    dtype=torch.float32,
                )
            run_actions(actions[stage], runner, tracer, who=bridge.describe())
            runner.finish()
            seconds.append(time.perf_counter() - start)
        return seconds


def _row(task: Task) -> Any:
    import numpy as np

    from ufork.data.packing import pack_row
    from ufork.data.prompts import EncodedSample

    sample = EncodedSample(
        id="row",
        task=task,
        token_ids_L=np.zeros(ROW_TOKENS, np.int64),
        labels_L=np.zeros(ROW_TOKENS, np.int64),
        image_begin=0,
        codes_IC=np.zeros((64, 4), np.int64),
    )
    return pack_row([sample], row_tokens=ROW_TOKENS, padding_id=0)


if __name__ == "__main__":
    main()
