"""What a training run is told: optimization, batch, precision, what trains, and what is reported how often."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ufork.checkpoint.config import CheckpointConfig
from ufork.config import Config
from ufork.vocabulary import Task

Part = Literal[
    "token_embedding", "projector", "trunk", "understanding", "generation", "text_head", "rq_head", "loss_weights"
]
"""Names for the parts of the model that a stage may train; see `ufork.train.parameter_groups`."""


class PerTask(Config):
    """One number per task."""

    understanding: NonNegativeFloat = 1.0
    generation: NonNegativeFloat = 1.0

    def of(self, task: Task) -> float:
        """The number of `task`."""
        return getattr(self, task)


class GlobalBatchSize(Config):
    """Packed rows in one step over the whole job, per task; the data-parallel ranks share them evenly."""

    understanding: NonNegativeInt = 4
    generation: NonNegativeInt = 4

    @property
    def by_task(self) -> dict[Task, int]:
        """The same as a mapping."""
        return {task: getattr(self, task) for task in Task}


class WandbConfig(Config):
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "ufork"


class TrainConfig(Config):
    """One stage of training."""

    steps: PositiveInt = 1000
    limit_seconds: PositiveFloat | None = None
    """The stage ends when it has lasted this long, even before all `steps`; its schedule is shortened to fit. The same
    seed then no longer gives the same weights everywhere."""
    global_batch_size: GlobalBatchSize = GlobalBatchSize()
    trainable: tuple[Part, ...] | Literal["all"] = "all"
    """Parts of the model that this stage trains; the rest is frozen."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the stage over which the learning rate rises linearly from 0."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Where the cosine ends, as a share of `learning_rate`."""
    weight_decay: NonNegativeFloat = 0.0
    """Applied to matrices only: not to norms, biases and embeddings."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: NonNegativeFloat = 1.0
    """Largest norm of the gradient over the whole job; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` keeps fp32 master weights; `auto` takes it where the device computes it natively."""
    linear: Literal["auto", "torch", "onednn"] = "auto"
    """Library for fp32 matrix products on CPUs. `auto` is oneDNN with AVX-512, torch's own (MKL) otherwise. Their
    results differ by rounding: name one to resume bit for bit on another kind of CPU."""
    activation_checkpointing: bool = False
    """Keep each decoder layer's input only, and compute the layer again in the backward pass."""
    loss_weights: PerTask = PerTask()
    """Weights of the tasks' mean losses in their sum; under `uncertainty`, factors before the learned ones."""
    loss_weighting: Literal["fixed", "uncertainty"] = "fixed"
    """`uncertainty` learns a log-variance per task (arXiv 1705.07115)."""
    deepspeed: dict[str, Any] = {}
    """Further keys of DeepSpeed's configuration."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume: str = "auto"
    """`auto` goes on from the newest valid checkpoint of the stage, where there is one; `never` removes them; the path
    of a checkpoint (`.../step-00000500`), of any run with these sizes and data, has a stage without any begin there."""
    max_nonfinite_steps: NonNegativeInt = 10
    """Steps with a loss or gradient that is not finite, each skipped, before the run ends with an error."""
    timeout_seconds: PositiveFloat = 600.0
    """How long a rank waits for another."""
    log_every_steps: PositiveInt = 10
    draw_every_steps: NonNegativeInt = 0
    """How often a grid of drawings is made; 0 for never."""
    drawing_prompts: tuple[str, ...] = ()
    """What the grids show."""
    wandb: WandbConfig = WandbConfig()
