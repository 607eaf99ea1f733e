"""Stages whose passes only sleep for a fixed time, to measure the rest of a step.

A stand-in engine sleeps for the duration of each pass, so that no core is needed. Everything else is real: a process
per stage, the bridge, the link with its tensors, the runners.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import process_context
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import Layout, Stage
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.schedule.actions import Action, Pass, StageTimes
from ufork.vocabulary import Task


@dataclass(frozen=True, kw_only=True)
class Transport:
    """Shape and type of what is sent between stages, and the number of receives posted ahead."""

    seq_len: int = 256
    hidden_size: int = 256
    dtype: str = "float32"
    receives_ahead: int | None = None
    """Receives posted ahead; None: as many as in training."""


def measure(
    actions: dict[Stage, tuple[Action, ...]], layout: Layout, times: StageTimes, transport: Transport, *, steps: int
) -> float:
    """Returns the median seconds of a step in which each stage runs its list."""
    by_rank = start_local_ranks(
        _run_rank, len(layout.coordinates), actions, layout, times, transport, steps, context=process_context()
    )
    return statistics.median(max(seconds) for seconds in list(zip(*by_rank, strict=True))[1:])


class _SleepingEngine:
    """Sleeps for the duration of each pass."""

    trains, gradient_scale = True, 1

    def __init__(self, stage: Stage, times: StageTimes, hidden_size: int) -> None:
        self.stage, self.times, self.hidden_size, self.task = stage, times, hidden_size, Task.UNDERSTANDING

    def forward(self, sequence: Any, num_targets: float = 1.0, hidden: Any = None) -> Any:
        import torch

        self.task = sequence.task
        time.sleep(self.times.seconds[self.stage, sequence.task, Pass.FORWARD])
        if hidden is None:
            return torch.zeros(len(sequence.token_ids_T), self.hidden_size, requires_grad=True) * 1
        return hidden.sum(), hidden.detach().sum()

    def backward(self, loss: Any, task: Any) -> None:
        # The trunk's passes are equally long for both tasks, so it need not know whose this one is.
        time.sleep(self.times.seconds[self.stage, self.task, Pass.BACKWARD])
        loss.backward()


def _run_rank(
    rank_env: RankEnvironment,
    actions: dict[Stage, tuple[Action, ...]],
    layout: Layout,
    times: StageTimes,
    transport: Transport,
    steps: int,
) -> list[float]:
    """Returns the seconds of each step on this rank; the first is a warm-up."""
    import torch

    from ufork.parallel.executor import BranchRunner, TrunkRunner, run_actions
    from ufork.parallel.tracing.trace import Tracer
    from ufork.parallel.transport import link as links
    from ufork.parallel.transport.packed_sequence_format import PackedSequenceFormat
    from ufork.parallel.transport.stage_world import join_world

    torch.set_num_threads(1)
    if transport.receives_ahead is not None:
        links.RECEIVES_AHEAD = transport.receives_ahead
    sequences = {task: [_sequence(task, transport)] * number for task, number in layout.global_batch_size.items()}
    with join_world(rank_env, LayoutConfig(kind="forked"), timeout_seconds=60) as world:
        bridge, stage, tracer = world.open_bridge(layout, "benchmark"), world.coordinate.stage, Tracer()
        sequences_in_transfer = PackedSequenceFormat(seq_len=transport.seq_len, codes_per_position=4)
        transfer_format = links.TransferFormat(
            sequences=sequences_in_transfer, hidden_size=transport.hidden_size, dtype=getattr(torch, transport.dtype)
        )
        link = links.Link(bridge, transfer_format, world.tp_group, tracer)
        engine: Any = _SleepingEngine(stage, times, transport.hidden_size)
        seconds = []
        for _ in range(steps + 1):
            bridge.sum(0.0)
            start = time.perf_counter()
            if stage is Stage.TRUNK:
                runner: Any = TrunkRunner(engine, link, sequences, in_flight=len(actions[stage]))
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
            run_actions(actions[stage], runner, tracer, who=bridge.coordinate)
            runner.finish()
            seconds.append(time.perf_counter() - start)
        return seconds


def _sequence(task: Task, transport: Transport) -> Any:
    import numpy as np

    from ufork.data.packing import pack_sequence
    from ufork.data.prompts import EncodedSample

    sample = EncodedSample(
        id="sequence",
        task=task,
        token_ids_L=np.zeros(transport.seq_len, np.int64),
        labels_L=np.zeros(transport.seq_len, np.int64),
        image_begin=0,
        codes_IC=np.zeros((64, 4), np.int64),
    )
    return pack_sequence([sample], seq_len=transport.seq_len, padding_id=0)
