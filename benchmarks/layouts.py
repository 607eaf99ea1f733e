"""Layouts on the same work and ranks, measured and predicted: `python -m benchmarks.layouts`.

Two ranks, one per core, train generation sequences: in a colocated model (ZeRO-3 over two replicas, or tensor
parallelism), and with trunk and generation branch on a rank each. More ranks than cores would share them, which the
planner does not model. Predictions are made from rates measured in the same run.

The last line is one JSON object: seconds per step by layout and the largest relative error of a prediction; likewise
the peak MB of tensors on the rank with the most (from torch's allocator).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.doctor.machine_rates import measure_machine
from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import prepare_environment, process_context
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import Layout, make_layout
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.schedule.in_flight import sequences_in_flight
from ufork.planning.memory import rank_memory
from ufork.planning.step_time import estimate_step
from ufork.planning.workload import Workload
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.vocabulary import Task

if TYPE_CHECKING:
    from ufork.parallel.transport.stage_world import World

MODEL = ModelConfig(
    hidden_size=256,
    intermediate_size=768,
    num_attention_heads=4,
    num_key_value_heads=4,
    trunk_layers=8,
    understanding_layers=4,
    generation_layers=4,
    tie_word_embeddings=False,
    rq_head=RqHeadConfig(hidden_size=256, attention_size=256, num_attention_heads=4, num_blocks=1, dropout=0.0),
)
DIMENSIONS = Dimensions(vocab_size=1024, codebook_size=512, code_width=64, codes_per_position=4)
SEQUENCES, SEQ_LEN = 4, 512
LAYOUTS = {
    "colocated dp 2": LayoutConfig(),
    "colocated tp 2": LayoutConfig(colocated_tp=2),
    "forked, a rank each": LayoutConfig(kind="forked"),
}


def main() -> None:
    """Measures, predicts and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6, help="steps measured, after two warm-up steps")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    prepare_environment(os.environ, num_local_ranks=2)
    workload = example_workload(arguments.precision)
    machine = measure_machine(workload)
    print(machine.to_yaml())
    measured, predicted, held, planned = {}, {}, {}, {}
    for name, config in LAYOUTS.items():
        layout = _layout(config, workload)
        predicted[name] = round(estimate_step(workload, machine, config, layout).seconds, 4)
        planned[name] = round(_planned_bytes(workload, config, layout) / 1e6)
        measured[name] = round(measure_step(config, workload, steps=arguments.steps), 4)
        held[name] = round(measure_bytes(config, workload) / 1e6)
        print(f"{name:20} measured {measured[name]:.3f} s, predicted {predicted[name]:.3f} s")
    figures = {
        "measured_s": measured,
        "predicted_s": predicted,
        "largest_error": _largest_error(predicted, measured),
        "measured_mb": held,
        "planned_mb": planned,
        "largest_memory_error": _largest_error(planned, held),
    }
    print(json.dumps(figures))


def _largest_error(predicted: Mapping[str, float], measured: Mapping[str, float]) -> float:
    return round(max(abs(predicted[name] / measured[name] - 1) for name in LAYOUTS), 3)


def example_workload(precision: str) -> Workload:
    """Returns a workload of generation only, so that both ranks of a forked layout have work."""
    return Workload(
        model=MODEL,
        dimensions=DIMENSIONS,
        global_batch_size={Task.UNDERSTANDING: 0, Task.GENERATION: SEQUENCES},
        seq_len=SEQ_LEN,
        num_lanes=SEQUENCES,
        precision=precision,
        recompute=False,
    )


def measure_step(config: LayoutConfig, workload: Workload, *, steps: int) -> float:
    """Returns the median seconds of a step, after two warm-up steps."""
    by_rank = _on_ranks(_run_seconds, config, workload, steps)
    return statistics.median(max(seconds) for seconds in zip(*by_rank, strict=True))


def measure_bytes(config: LayoutConfig, workload: Workload) -> int:
    """Returns the peak bytes of tensors on the rank with the most, from building the stage through two steps."""
    return max(_on_ranks(_run_bytes, config, workload))


def _on_ranks(run: Callable[..., Any], config: LayoutConfig, workload: Workload, *arguments: int) -> list[Any]:
    """Returns the results of the ranks that have work."""
    ranks = len(_layout(config, workload).coordinates)
    by_rank = start_local_ranks(run, ranks, workload, config, *arguments, context=process_context())
    return [result for result in by_rank if result is not None]


def _planned_bytes(workload: Workload, config: LayoutConfig, layout: Layout) -> int:
    in_flight = sequences_in_flight(config, layout)
    stages = layout.shapes.items()
    return max(rank_memory(workload, stage, shape, in_flight=in_flight).total for stage, shape in stages)


def _layout(config: LayoutConfig, workload: Workload) -> Layout:
    """A forked layout has a third rank, understanding's, which idles."""
    return make_layout(
        config, num_ranks=3 if config.kind == "forked" else 2, global_batch_size=workload.global_batch_size
    )


def _run_seconds(rank_env: RankEnvironment, workload: Workload, config: LayoutConfig, steps: int) -> list[float] | None:
    """Returns seconds of each step after two; None on a rank without work."""
    from ufork.parallel.transport.stage_world import join_world

    with join_world(rank_env, config, timeout_seconds=120) as world:
        if not _has_work(world, workload, config):
            return None
        step = _build_step(world, workload, config)
        seconds = []
        for _ in range(steps + 2):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        return seconds[2:]


def _run_bytes(rank_env: RankEnvironment, workload: Workload, config: LayoutConfig) -> int | None:
    """Returns the most bytes allocated at once; None on a rank without work."""
    import torch

    from ufork.parallel.transport.stage_world import join_world

    with join_world(rank_env, config, timeout_seconds=120) as world, tempfile.TemporaryDirectory() as folder:
        if not _has_work(world, workload, config):
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            step = _build_step(world, workload, config)
            step()
            step()
        path = f"{folder}/trace.json"
        profile.export_chrome_trace(path)
        events = json.loads(Path(path).read_bytes())["traceEvents"]
        return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")


def _has_work(world: "World", workload: Workload, config: LayoutConfig) -> bool:
    return world.rank in _layout(config, workload).present_ranks


def _build_step(world: "World", workload: Workload, config: LayoutConfig) -> Callable[[], object]:
    """Returns a rank's training step, always on the same packed sequence."""
    import torch

    from benchmarks.stages import open_stage
    from ufork.train.step import run_step

    torch.set_num_threads(1)
    train = TrainConfig(
        precision=workload.precision,
        learning_rate=1e-4,
        global_batch_size=GlobalBatchSize(understanding=0, generation=SEQUENCES),
    )
    stage = open_stage(world, workload.model, workload.dimensions, train, seq_len=SEQ_LEN, layout=config)
    number = _layout(config, workload).num_micro_batches(world.coordinate.stage)[Task.GENERATION]
    sequences = {Task.GENERATION: [workload.sequence(Task.GENERATION)] * number} if stage.reads_data else {}
    return lambda: run_step(stage, sequences, 1e-4)


if __name__ == "__main__":
    main()
