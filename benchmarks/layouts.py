"""Layouts on the same work and ranks, measured and predicted: `python -m benchmarks.layouts`.

Two ranks, one per core: generation rows through a colocated model (ZeRO-3 over two replicas, or two slices of each
product), and through trunk and generation branch on a rank each. More ranks than cores would share them, which the
planner does not model. The prediction is made from rates that are measured in the same run.

The last line is one JSON object: seconds per step by layout, and the largest relative error of a prediction.
"""

import argparse
import json
import os
import statistics
import time

from pipelines.launch import prepare_environment, process_context
from pipelines.local_ranks import start_local_ranks
from pipelines.machine_rates import measure_machine
from ufork.analysis.step_time import estimate_step
from ufork.analysis.workload import Workload
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.parallel.address import RankAddress
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import Layout, make_layout
from ufork.train.config import RowsPerStep, TrainConfig
from ufork.vocabulary import Task

MODEL = ModelConfig(
    width=256,
    mlp_width=768,
    num_heads=4,
    num_kv_heads=4,
    trunk_layers=8,
    understanding_layers=4,
    generation_layers=4,
    tie_text_head=False,
    rq_head=RqHeadConfig(width=256, attention_width=256, num_heads=4, num_blocks=1, dropout=0.0),
)
DIMENSIONS = Dimensions(vocabulary_size=1024, codebook_size=512, code_width=64, codes_per_position=4)
ROWS, ROW_TOKENS = 4, 512
LAYOUTS = {
    "colocated dp 2": LayoutConfig(),
    "colocated tp 2": LayoutConfig(colocated_tp=2),
    "forked, a rank each": LayoutConfig(kind="forked"),
}


def main() -> None:
    """Measures, predicts and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6, help="measured, after two that are not")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    prepare_environment(os.environ, num_local_ranks=2)
    workload = example_workload(arguments.precision)
    machine = measure_machine(workload)
    print(machine.to_yaml())
    measured, predicted = {}, {}
    for name, config in LAYOUTS.items():
        layout = _layout(config, workload)
        predicted[name] = round(estimate_step(workload, machine, config, layout).seconds, 4)
        measured[name] = round(measure_step(config, workload, steps=arguments.steps), 4)
        print(f"{name:20} measured {measured[name]:.3f} s, predicted {predicted[name]:.3f} s")
    error = max(abs(predicted[name] / measured[name] - 1) for name in LAYOUTS)
    print(json.dumps({"measured_s": measured, "predicted_s": predicted, "largest_error": round(error, 3)}))


def example_workload(precision: str) -> Workload:
    """Generation rows only: both ranks of a forked layout then have work."""
    return Workload(
        model=MODEL,
        dimensions=DIMENSIONS,
        rows_per_step={Task.UNDERSTANDING: 0, Task.GENERATION: ROWS},
        row_tokens=ROW_TOKENS,
        precision=precision,
        recompute=False,
    )


def measure_step(config: LayoutConfig, workload: Workload, *, steps: int) -> float:
    """Median seconds of a step, after two that are not counted."""
    ranks = len(_layout(config, workload).places)
    by_rank = start_local_ranks(_run_rank, ranks, workload, config, steps, context=process_context())
    return statistics.median(max(s) for s in zip(*filter(None, by_rank), strict=True))


def _layout(config: LayoutConfig, workload: Workload) -> Layout:
    """The forked one has a third rank, understanding's, that idles."""
    return make_layout(config, num_ranks=3 if config.kind == "forked" else 2, rows_per_step=workload.rows_per_step)


def _run_rank(address: RankAddress, workload: Workload, config: LayoutConfig, steps: int) -> list[float]:
    """Seconds of each step after two; nothing from a rank without work."""
    import torch

    from benchmarks.stages import open_stage
    from ufork.parallel.world import join_world
    from ufork.train.step import run_step

    torch.set_num_threads(1)
    layout = _layout(config, workload)
    train = TrainConfig(
        precision=workload.precision,
        learning_rate=1e-4,
        rows_per_step=RowsPerStep(understanding=0, generation=ROWS),
    )
    with join_world(address, config, timeout_seconds=120) as world:
        if world.rank not in layout.present_ranks:
            return []
        stage = open_stage(
            world, workload.model, workload.dimensions, train, row_tokens=workload.row_tokens, layout=config
        )
        number = layout.num_micro_batches(world.place.stage)[Task.GENERATION]
        rows = {Task.GENERATION: [workload.row(Task.GENERATION)] * number} if stage.reads_data else {}
        seconds = []
        for _ in range(steps + 2):
            start = time.perf_counter()
            run_step(stage, rows, 1e-4)
            seconds.append(time.perf_counter() - start)
        return seconds[2:]


if __name__ == "__main__":
    main()
