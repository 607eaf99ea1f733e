"""Speed of a training step on this machine, against its own rate of matrix products: `python -m benchmarks.train_step`.

One rank with the real ZeRO-3 engine trains packed sequences of random codes and texts. `--preset` names the model and
the sequences (benchmarks/workloads/presets.py); `--profile` also prints the operators that take the most time. The last
line is one JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import time
from typing import Any

from pipelines.launch.ranks import prepare_environment

prepare_environment(os.environ, num_local_ranks=1)

import torch  # noqa: E402 (what follows reads the environment when it is imported)

from benchmarks.gemm import best_gemm_gflops  # noqa: E402
from benchmarks.stages import open_stage, single_rank  # noqa: E402
from benchmarks.workloads.presets import PRESETS, Preset  # noqa: E402
from ufork.model.cost import sequence_cost  # noqa: E402
from ufork.parallel.transport.stage_world import World, join_world  # noqa: E402
from ufork.train.config import GlobalBatchSize, TrainConfig  # noqa: E402
from ufork.train.stage import TrainingStage  # noqa: E402
from ufork.train.step import run_step  # noqa: E402

PRECISIONS = ("fp32", "bf16")
WARMUP_STEPS, MOST_STEPS = 2, 12
LIMIT_SECONDS = 60.0
"""Limit of all measured steps. A CPU without bf16 units takes a minute a step in bf16; then only one is measured."""


def main() -> None:
    """Measures fp32 and bf16 in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="default", help="model and sequences")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=PRECISIONS, help="default: both")
    parser.add_argument("--optimizer", choices=("adamw", "muon", "sgd"), default="adamw")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    preset = PRESETS[arguments.preset]
    with join_world(single_rank(), timeout_seconds=60) as world:
        figures = {
            p: _measure(preset, p, arguments.optimizer, world, profiled=arguments.profile) for p in arguments.precision
        }
    print(json.dumps({"preset": arguments.preset, "optimizer": arguments.optimizer} | figures))


def _measure(preset: Preset, precision: str, optimizer: str, world: World, *, profiled: bool) -> dict[str, Any]:
    stage, sequences = _stage(preset, precision, optimizer, world), preset.sequences()
    seconds: list[float] = []
    while not seconds or (len(seconds) < MOST_STEPS and sum(seconds) < LIMIT_SECONDS):
        start = time.perf_counter()
        result = run_step(stage, sequences, 1e-4)
        seconds.append(time.perf_counter() - start)
    if profiled:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run_step(stage, sequences, 1e-4)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))
    stage.engine.close()
    step_seconds = statistics.median(seconds[WARMUP_STEPS:] or seconds)
    flops = sum(
        sequence_cost(preset.model, preset.dimensions, sequence).training
        for task in sequences
        for sequence in sequences[task]
    )
    gemm = best_gemm_gflops(torch.float32 if precision == "fp32" else torch.bfloat16)
    num_tokens = result.num_real_tokens + result.num_padding_tokens
    return {
        "step_s": round(step_seconds, 4),
        "real_tokens_per_s": round(result.num_real_tokens / step_seconds),
        "achieved_gflops": round(flops / step_seconds / 1e9, 1),
        "gemm_gflops": round(gemm, 1),
        "gemm_share": round(flops / step_seconds / 1e9 / gemm, 3),
        "padding_share": round(result.num_padding_tokens / num_tokens, 4),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _stage(preset: Preset, precision: str, optimizer: str, world: World) -> TrainingStage:
    number = preset.sequences_per_task
    batch_size = GlobalBatchSize(understanding=number, generation=number)
    config = TrainConfig(precision=precision, optimizer=optimizer, learning_rate=1e-4, global_batch_size=batch_size)
    return open_stage(world, preset.model, preset.dimensions, config, seq_len=preset.seq_len, name=precision)


if __name__ == "__main__":
    main()
