"""Gain of overlapping transfers with computation, by each technique alone: `python -m benchmarks.overlap`.

Receives posted ahead and the precision of transfers: a forked step of sleeping stages (`sleeping_stages.py`) whose
hidden states are as large as a real model's, so that only their transfer costs anything. One reduction of gradients a
step against one per backward pass: a real ZeRO-3 engine over two replicas.

The last line is one JSON object: milliseconds of a step, by setting.
"""

import argparse
import json
import os

from benchmarks.layouts import example_workload, measure_step
from benchmarks.sleeping_stages import Transport, measure
from pipelines.launch.ranks import prepare_environment
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import BRANCHES, Stage, make_layout
from ufork.parallel.schedule.actions import Pass, StageTimes
from ufork.parallel.schedule.schedule import make_schedule
from ufork.vocabulary import Task

FORWARD_SECONDS, BACKWARD_SECONDS = 0.005, 0.010
"""Seconds of the trunk's passes; a branch takes twice that, so that all are equally busy."""
RECEIVES_AHEAD = (0, 1, 2, 4)
P2P_DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Measures each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=16, help="packed sequences per step, half of each task")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--hidden-size", type=int, default=896, help="size of the hidden states")
    parser.add_argument("--steps", type=int, default=7)
    arguments = parser.parse_args()
    prepare_environment(os.environ, num_local_ranks=3)
    size = {"seq_len": arguments.seq_len, "hidden_size": arguments.hidden_size}
    ahead = {
        str(number): _sleeping_step(Transport(**size, receives_ahead=number), arguments) for number in RECEIVES_AHEAD
    }
    transfer_format = {dtype: _sleeping_step(Transport(**size, dtype=dtype), arguments) for dtype in P2P_DTYPES}
    reductions = {
        name: _milliseconds(measure_step(LayoutConfig(reduce_each_backward=each), example_workload("fp32"), steps=5))
        for name, each in (("once a step", False), ("each backward", True))
    }
    print(json.dumps({"receives_ahead_ms": ahead, "p2p_ms": transfer_format, "reductions_ms": reductions}))


def _sleeping_step(transport: Transport, arguments: argparse.Namespace) -> float:
    layout = make_layout(
        LayoutConfig(kind="forked"), num_ranks=3, global_batch_size=dict.fromkeys(Task, arguments.sequences // 2)
    )
    times = _times()
    schedule = make_schedule(layout, times, in_flight=4)
    milliseconds = _milliseconds(measure(schedule, layout, times, transport, steps=arguments.steps))
    print(f"{transport}: {milliseconds} ms")
    return milliseconds


def _times() -> StageTimes:
    passes = {Pass.FORWARD: FORWARD_SECONDS, Pass.BACKWARD: BACKWARD_SECONDS}
    trunk = {(Stage.TRUNK, task, direction): each for task in Task for direction, each in passes.items()}
    branches = {(BRANCHES[task], task, direction): 2 * each for task in Task for direction, each in passes.items()}
    return StageTimes(seconds=trunk | branches)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 1)


if __name__ == "__main__":
    main()
