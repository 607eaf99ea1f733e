"""The model of the released size, packed sequences for it, and the measurement of its training steps.

Sizes -> RandomSequences, modules, an engine -> measure_steps -> seconds, model FLOPs over the rates of products, memory
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks.gpu_check.measuring import GB, half_precision, seconds_of
from benchmarks.gpu_check.report import Report
from benchmarks.workloads.random_sequences import RandomSequences
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.model.cost import sequence_cost
from ufork.planning.machine import PROFILES, MachineProfile
from ufork.train.config import GlobalBatchSize, TrainConfig, WandbConfig
from ufork.train.stage import TrainingStage
from ufork.train.step import StepResult, run_step
from ufork.vocabulary import PackedSequence, Task

RATE = 1e-5
WARMUPS, STEPS = 2, 5


@dataclass(frozen=True)
class Sizes:
    """What is trained."""

    model: ModelConfig
    dimensions: Dimensions
    random: RandomSequences
    product: int
    """Side of the matrices whose product is timed."""


def released_sizes(*, cpu: bool) -> Sizes:
    """Returns the released sizes and sequences of 8192 tokens; with `cpu`, tiny ones."""
    if cpu:
        head = RqHeadConfig(hidden_size=32, attention_size=64, num_attention_heads=4, num_blocks=1)
        model = ModelConfig(
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=4,
            trunk_layers=1,
            understanding_layers=1,
            generation_layers=1,
            rq_head=head,
        )
        dimensions = Dimensions(vocab_size=512, codebook_size=64, code_width=16, codes_per_position=4)
        random = RandomSequences(dimensions=dimensions, seq_len=128, image_positions=16)
        return Sizes(model, dimensions, random, product=128)
    dimensions = Dimensions(vocab_size=151_936, codebook_size=16_384, code_width=1024, codes_per_position=4)
    random = RandomSequences(dimensions=dimensions, seq_len=8192, image_positions=729, text_tokens=(30, 90))
    return Sizes(ModelConfig(), dimensions, random, product=8192)


@dataclass(frozen=True)
class Rates:
    """Product rates that model FLOPs are compared with, in TFLOP/s."""

    measured: float
    datasheet: float | None

    def shares(self, tflops: float) -> dict[str, float | None]:
        """Returns the shares of both, under the names used in the results."""
        over_datasheet = None if self.datasheet is None else round(tflops / self.datasheet, 4)
        return {"mfu_of_measured": round(tflops / self.measured, 4), "mfu_of_datasheet": over_datasheet}


def product_rates(report: Report, side: int, device: torch.device) -> Rates:
    """Measures the rate of a product of square matrices, and reports it."""
    left, right = (torch.randn(side, side, device=device, dtype=half_precision(device)) for _ in range(2))
    measured = 2 * side**3 / seconds_of(lambda: left @ right, device, repeats=10, warmups=3) / 1e12
    machine = known_machine()
    datasheet = machine and machine.peak_gflops(precision_on(device)) / 1e3
    report.figure("product", {"side": side, "tflops": measured, "datasheet_tflops": datasheet})
    report.headline(f"products {measured:.3g} TFLOP/s")
    return Rates(measured, datasheet)


def train_config(understanding: int, generation: int, device: torch.device) -> TrainConfig:
    """Returns the configuration for so many packed sequences of each task in a step."""
    return TrainConfig(
        learning_rate=RATE,
        precision=precision_on(device),
        activation_checkpointing=True,
        global_batch_size=GlobalBatchSize(understanding=understanding, generation=generation),
        wandb=WandbConfig(mode="disabled"),
    )


def measure_steps(
    stage: TrainingStage, sequences: Mapping[Task, Sequence[PackedSequence]], sizes: Sizes, rates: Rates
) -> dict[str, Any]:
    """Returns the figures of steps after two others."""
    device, results = stage.world.device, list[StepResult]()

    def step() -> None:
        results.append(run_step(stage, sequences, RATE))

    for _ in range(WARMUPS):
        step()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(step, device, repeats=STEPS, warmups=0)
    every = [sequence for of_task in sequences.values() for sequence in of_task]
    flops = sum(sequence_cost(sizes.model, sizes.dimensions, sequence).training for sequence in every)
    figures: dict[str, Any] = {
        "step_seconds": round(seconds, 4),
        "tokens_per_s": round(len(every) * sizes.random.seq_len / seconds),
        "tflops": flops / seconds / 1e12,
        **rates.shares(flops / seconds / 1e12),
        "losses": results[-1].losses,
        "is_finite": math.isfinite(results[-1].gradient_norm) and all(map(math.isfinite, results[-1].losses.values())),
    }
    if device.type == "cuda":
        figures["allocated_gb"] = round(torch.cuda.max_memory_allocated(device) / GB, 3)
        figures["reserved_gb"] = round(torch.cuda.max_memory_reserved(device) / GB, 3)
    return figures


def precision_on(device: torch.device) -> Literal["bf16", "fp32"]:
    """Returns the precision that training at this size uses."""
    return "bf16" if half_precision(device) == torch.bfloat16 else "fp32"


def known_machine() -> MachineProfile | None:
    """Returns the datasheet of this GPU, if the planner has it."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((PROFILES[profile] for profile in PROFILES if profile.upper() in name.split("-")[0].split()), None)
