"""Config of training a phase: steps, batch, trained groups, optimizer, precision, loss, checkpoints, reports."""

import json
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ufork.analysis.config import AlignmentConfig
from ufork.checkpoint.config import CheckpointConfig
from ufork.config import Config, Location
from ufork.vocabulary import Task

ParameterGroup = Literal[
    "token_embedding", "projector", "trunk", "understanding", "generation", "text_head", "rq_head", "loss_weights"
]
"""Names of the groups of parameters that a phase may train; `ufork.train.trainable` lists what is in each."""


class PerTask(Config):
    """One factor per task."""

    understanding: NonNegativeFloat = 1.0
    """Factor of the mean loss per text token."""
    generation: NonNegativeFloat = 1.0
    """Factor of the mean loss per image code."""

    def of(self, task: Task) -> float:
        """Returns the factor of `task`."""
        return getattr(self, task)


class GradNormConfig(Config):
    """Weighting of losses by gradient norms (`ufork.train.objectives.gradnorm`)."""

    alpha: float = Field(default=1.5, ge=0, le=10)
    """How strongly the task that has learned less gets the larger gradient; 0 keeps the norms equal."""
    rate: float = Field(default=0.025, gt=0, le=1)
    """Fraction of the way to the wanted norms, in logarithm, that the factors go in a step."""


class GlobalBatchSize(Config):
    """Packed sequences in one step over the whole job, per task.

    The data-parallel replicas of each stage share them evenly, so their number must divide them. A task with 0 is not
    trained in this phase.
    """

    understanding: int = Field(default=4, ge=0, le=2**20)
    """Packed sequences of understanding samples (image, question, answer)."""
    generation: int = Field(default=4, ge=0, le=2**20)
    """Packed sequences of generation samples (caption, image)."""

    @property
    def by_task(self) -> dict[Task, int]:
        """The sizes of the tasks that have any."""
        return {task: getattr(self, task) for task in Task if getattr(self, task)}

    @model_validator(mode="after")
    def _has_sequences(self) -> Self:
        if not self.by_task:
            raise ValueError("a step needs at least one packed sequence of one task, and both tasks have 0")
        return self


class GradientConflictConfig(Config):
    """Probe of how the two tasks' gradients agree, layer by layer (`ufork.analysis.gradient_conflict`)."""

    every_steps: NonNegativeInt = 0
    """Steps between two measurements; 0 measures nothing."""
    sequences_per_task: int = Field(default=4, ge=1, le=10_000)
    """Packed sequences of each task that the gradients are computed on, the first of the phase."""


class AlignmentProbeConfig(AlignmentConfig):
    """Probe of how image and text features agree, layer by layer (`ufork.analysis.measure_alignment`)."""

    every_steps: NonNegativeInt = 0
    """Steps between two measurements; 0 measures nothing."""
    data: tuple[Location, ...] = ()
    """Source folders of the pairs, as `folder` of the phase's own sources, which are taken by default."""
    num_pairs: int = Field(default=200, ge=20, le=10**6)
    """Pairs of an image and a text, no two with the same text."""
    num_permutations: int = Field(default=5, ge=2, le=10_000)
    """Permutations of the pairs, whose mean scores are subtracted."""


class WandbConfig(Config):
    """Weights & Biases, beside `metrics.jsonl`, which is always written."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` writes below the phase's folder, for `wandb sync` later."""
    project: str = "ufork"
    """Project that the runs are listed in."""


class TrainConfig(Config):
    """One phase of training."""

    steps: int = Field(default=1000, ge=1, le=10**9)
    """Optimizer steps of the phase, skipped ones included."""
    limit_seconds: PositiveFloat | None = None
    """Seconds after which the phase ends even if `steps` are not done; the learning rate schedule is shortened to fit.
    With a limit, the same seed gives different weights on machines of different speed."""
    global_batch_size: GlobalBatchSize = GlobalBatchSize()
    """Packed sequences per step, of `data.seq_len` tokens each."""
    trainable: tuple[ParameterGroup, ...] | Literal["all"] = "all"
    """Groups of parameters that the phase trains, all others being frozen; or `all`."""
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """AdamW (arXiv 1711.05101); Muon (arXiv 2502.16982) for the matrices inside the model and AdamW for the rest; or
    SGD without momentum."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1e9)
    """Peak learning rate."""
    muon_learning_rate: float | None = Field(default=None, gt=0, le=1e9)
    """Peak learning rate of Muon's matrices; by default `learning_rate`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: half a cosine from the peak to `min_lr_ratio`, or the peak throughout."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Fraction of the phase over which the learning rate rises linearly from 0."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    weight_decay: float = Field(default=0.0, ge=0, le=1e9)
    """Decoupled weight decay of matrices; norms, biases and embeddings are not decayed."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay rate of the mean of gradients."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay rate of the mean of squared gradients."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Norm that gradients are clipped to, over all parameters of all ranks; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of forward and backward passes. `bf16` keeps fp32 master weights; `auto` is bf16 on devices that
    compute it natively, fp32 on others."""
    linear: Literal["auto", "torch", "onednn"] = "auto"
    """Library for fp32 matrix products on CPUs. `auto` is oneDNN with AVX2 or AVX-512, torch's own otherwise. Their
    results differ by rounding: name one to resume bit for bit on another kind of CPU."""
    kernels: Literal["auto", "torch"] = "auto"
    """`auto` uses fused kernels on CUDA: those of NVIDIA apex, liger-kernel and torch.compile that run there. `torch`
    uses plain torch. Attention is chosen apart."""
    activation_checkpointing: bool = False
    """Keep only the input of each decoder layer for the backward pass and compute the layer again: less memory, about a
    third more operations."""
    loss_weights: PerTask = PerTask()
    """Factors of the tasks' mean losses in their sum; with `loss_weighting: uncertainty`, besides the learned ones;
    with `gradnorm`, the wanted proportion of their gradients."""
    loss_weighting: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    """`uncertainty` learns a log-variance per task that weighs its loss (arXiv 1705.07115). `gradnorm` keeps the norms
    of the tasks' gradients at the fork in proportion (after arXiv 1711.02257)."""
    gradnorm: GradNormConfig = GradNormConfig()
    """Used with `loss_weighting: gradnorm`."""
    deepspeed: dict[str, Any] = {}
    """Further keys of DeepSpeed's configuration; those that follow from the recipe are refused."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving of checkpoints, and selection of those that are kept."""
    resume: str = "auto"
    """`auto` resumes from the phase's newest valid checkpoint if there is one; `never` deletes its checkpoints and
    starts over; the path of a checkpoint (`.../step-00000500`) of any run with the same model and data is where a phase
    without checkpoints starts."""
    max_nonfinite_steps: NonNegativeInt = 10
    """Steps that may be skipped, because loss or gradient are not finite, before the run ends with an error."""
    timeout_seconds: float = Field(default=600.0, gt=0, le=1e8)
    """Seconds that a rank waits for another before the run ends with an error."""
    log_every_steps: PositiveInt = 10
    """Steps between two lines of metrics, each of which has the means over the steps since the one before."""
    draw_every_steps: NonNegativeInt = 0
    """Steps between two grids of drawings; 0 draws none."""
    drawing_prompts: tuple[str, ...] = ()
    """Prompts of the grids."""
    gradient_conflict: GradientConflictConfig = GradientConflictConfig()
    """Conflict of the two tasks' gradients, measured during training."""
    alignment: AlignmentProbeConfig = AlignmentProbeConfig()
    """Alignment of image and text features, measured during training."""
    wandb: WandbConfig = WandbConfig()

    @field_validator("deepspeed")
    @classmethod
    def _has_finite_numbers(cls, values: dict[str, Any]) -> dict[str, Any]:
        json.dumps(values, allow_nan=False)  # raises ValueError
        return values

    @property
    def balances_gradients(self) -> bool:
        """Whether the phase weights losses by gradient norms, for which it takes both tasks."""
        return self.loss_weighting == "gradnorm" and len(self.global_batch_size.by_task) > 1
