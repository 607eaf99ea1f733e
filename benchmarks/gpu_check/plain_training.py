"""A tiny model, trained by plain torch on the CPU: what every device and layout has to arrive at.

TINY, one step's packed sequences -> train_plainly -> losses, gradient norms, weights -> compare
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.measuring import largest
from benchmarks.gpu_check.report import Report
from benchmarks.stages import initial_model
from benchmarks.workloads.random_sequences import RandomSequences
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.model.kernels import KernelChoice
from ufork.parallel.layout import Stage
from ufork.train.config import GlobalBatchSize, TrainConfig, WandbConfig
from ufork.train.optimization.optimizer import build_optimizer
from ufork.train.optimization.parameter_groups import freeze_except
from ufork.train.stage_module import StageModule
from ufork.train.step import StepResult
from ufork.vocabulary import PackedSequence, Task

TINY = ModelConfig(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    trunk_layers=2,
    understanding_layers=1,
    generation_layers=1,
    rq_head=RqHeadConfig(hidden_size=32, attention_size=64, num_attention_heads=4, num_blocks=1, dropout=0.0),
)
DIMENSIONS = Dimensions(vocab_size=512, codebook_size=64, code_width=16, codes_per_position=4)
SEQ_LEN = 128
SEQUENCES = GlobalBatchSize(understanding=2, generation=2)
RATES = {"sgd": 0.1, "adamw": 1e-3, "muon": 1e-3}
"""Learning rates by optimizer. SGD is here since AdamW hides a wrong scale of the gradients."""
TOLERANCE = 1e-4
"""Largest relative difference of losses and norms: products on a GPU sum in another order than on a CPU."""
WEIGHTS_TOLERANCE = {"sgd": TOLERANCE, "adamw": 1e-3, "muon": 1e-3}
"""Largest norm of the weights' differences relative to that of their change, by optimizer. AdamW steps as far by a
gradient that is nearly zero as by any other: rounding of 1e-6 in every product, put in on a CPU, made 1e-4 of it."""
ROUNDING_ONLY = "key.bias"
"""A shift of all keys changes no attention weight, so this gradient is nothing but rounding, and AdamW steps as far by
it as by any other."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Course and end of a training."""

    losses: Sequence[Mapping[Task, float]]
    """Mean losses by task, of every step."""
    norms: Sequence[float]
    """Norms of the gradients before clipping."""
    weights: Mapping[str, Tensor]
    """The model's parameters at the end; fp32, on the CPU."""


def train_config(optimizer: str, *, kernels: KernelChoice = "auto") -> TrainConfig:
    """Returns the configuration of tiny trainings in fp32."""
    return TrainConfig(
        optimizer=optimizer,
        learning_rate=RATES[optimizer],
        weight_decay=0.01,
        precision="fp32",
        kernels=kernels,
        global_batch_size=SEQUENCES,
        wandb=WandbConfig(mode="disabled"),
    )


def step_sequences() -> dict[Task, list[PackedSequence]]:
    """Returns the packed sequences of a whole job's step."""
    rng = np.random.default_rng(0)
    random = RandomSequences(dimensions=DIMENSIONS, seq_len=SEQ_LEN, image_positions=16, text_tokens=(6, 30))
    return {task: [random.sequence(task, rng) for _ in range(number)] for task, number in SEQUENCES.by_task.items()}


def train_plainly(config: TrainConfig, *, steps: int) -> Trained:
    """Trains the tiny model in plain torch on the CPU."""
    module = StageModule(initial_model(TINY, DIMENSIONS).build(Stage.COLOCATED), config)
    freeze_except(module, config.trainable)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(module, config, torch.device("cpu"))
    sequences = step_sequences()
    num_targets = {task: sum(sequence.num_targets for sequence in sequences[task]) for task in sequences}
    losses, norms = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        sums = dict.fromkeys(sequences, 0.0)
        for task, of_task in sequences.items():
            for sequence in of_task:
                term, total = module(sequence, num_targets[task])
                term.backward()
                sums[task] += float(total)
        losses.append({task: sums[task] / num_targets[task] for task in sums})
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)))
        optimizer.step()
    weights = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    return Trained(losses=losses, norms=norms, weights=weights)


def trained_of(results: Sequence[StepResult], weights: Mapping[str, Tensor]) -> Trained:
    """Returns the results of steps as a course."""
    return Trained(
        losses=[result.losses for result in results],
        norms=[result.gradient_norm for result in results],
        weights=weights,
    )


def compare(
    report: Report, name: str, found: Trained, expected: Trained, *, weights_tolerance: float = TOLERANCE
) -> None:
    """Reports how far a training is from what it has to arrive at."""
    losses = largest(
        abs(mine[task] / theirs[task] - 1)
        for mine, theirs in zip(found.losses, expected.losses, strict=True)
        for task in theirs
    )
    norms = largest(abs(mine / theirs - 1) for mine, theirs in zip(found.norms, expected.norms, strict=True))
    weights = _weight_difference(found.weights, expected.weights)
    figures = {"losses": losses, "gradient_norms": norms, "weights": weights}
    report.figure(f"difference, {name}", figures)
    told = ", ".join(f"{key} {value:.2g}" for key, value in figures.items())
    passed = losses < TOLERANCE and norms < TOLERANCE and weights < weights_tolerance
    most = f"at most {TOLERANCE}, weights {weights_tolerance}"
    report.check(name, passed, f"differs from the CPU's by {told}; {most}")


def _weight_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Returns the norm of the difference of all weights, relative to the norm of their change in training."""
    initial = dict(initial_model(TINY, DIMENSIONS).build(Stage.COLOCATED).named_parameters())
    names = [name for name in expected if not name.endswith(ROUNDING_ONLY)]
    difference = sum(float((found[name] - expected[name]).double().square().sum()) for name in names)
    change = sum(float((expected[name] - initial[name].detach()).double().square().sum()) for name in names)
    return (difference / change) ** 0.5
