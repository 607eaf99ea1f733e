"""The loop of one training stage.

model -> WeightedLoss -> ZeRO-3 engine; per step: the stream's rows -> run_step -> telemetry; at last: whole weights
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ufork.data.stream import TrainingStream
from ufork.errors import NonFiniteError
from ufork.model.decoder import DecoderLayer
from ufork.model.linear import use_fastest_linear
from ufork.model.rq_head import DepthBlock
from ufork.model.unifork import UniFork
from ufork.parallel.engine import Engine, Precision, engine_config
from ufork.parallel.world import World
from ufork.train.config import TrainConfig
from ufork.train.learning_rate import learning_rate
from ufork.train.loss_weighting import WeightedLoss
from ufork.train.optimizer import build_optimizer
from ufork.train.parts import freeze_except
from ufork.train.progress import progress_of
from ufork.train.step import StepResult, run_step
from ufork.train.telemetry import Telemetry

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage leaves behind."""

    weights: Weights
    """The model's parameters by name, whole, fp32; empty on all ranks but the leader."""
    steps_skipped: int


def train_stage(
    model: UniFork,
    config: TrainConfig,
    stream: TrainingStream,
    telemetry: Telemetry,
    world: World,
    *,
    draw_grid: Callable[[Weights], np.ndarray] | None = None,
) -> StageResult:
    """Trains `model` for `config.steps` steps or `config.limit_seconds`; all ranks of `world` call it alike.

    Args:
        draw_grid: makes a picture of `config.drawing_prompts` from whole weights, every `config.draw_every_steps`.

    Raises:
        NonFiniteError: more than `config.max_nonfinite_steps` steps had to be skipped.
        PeerError: another rank is gone.
    """
    engine = build_engine(model, config, world)
    began = time.monotonic()
    step = num_skipped = 0
    while (progress := progress_of(config, steps=step, seconds=time.monotonic() - began, ranks=world)) < 1:
        rate = learning_rate(config, progress)
        result = run_step(engine, stream.next_step(), rate)
        if not result.is_finite:
            num_skipped += 1
            _tolerate(result, step, num_skipped, config, world)
        telemetry.record(step, result, rate)
        step += 1
        if draw_grid and config.draw_every_steps and step % config.draw_every_steps == 0:
            weights = model_weights(engine)
            if world.is_leader:
                telemetry.show(step, draw_grid(weights))
    weights = model_weights(engine)
    engine.close()
    return StageResult(weights=weights, steps_skipped=num_skipped)


def build_engine(model: UniFork, config: TrainConfig, world: World) -> Engine:
    """Freezes what the stage leaves alone, and shards the rest with its optimizer."""
    loss = WeightedLoss(model, config).to(world.device)
    freeze_except(loss, config.trainable)
    model.set_recompute(config.activation_checkpointing)
    precision = precision_of(config, world)
    log.info("precision: %s (train.precision is %s, the device %s)", precision, config.precision, world.device.type)
    use_fastest_linear(model, world.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    settings = engine_config(precision, clip_norm=config.clip_norm, extra=config.deepspeed)
    optimizer = build_optimizer(loss, config, world.device)
    return Engine(loss, optimizer, settings, world, gathered_whole=(DecoderLayer, DepthBlock))


def precision_of(config: TrainConfig, world: World) -> Precision:
    """The precision asked for; `auto` is bf16 where the device computes it natively."""
    if config.precision != "auto":
        return config.precision
    native = torch.cuda.is_bf16_supported() if world.device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


def model_weights(engine: Engine) -> Weights:
    """The model's own parameters among the engine's, whole; all ranks must call."""
    whole = engine.full_weights()
    return {name.removeprefix("model."): tensor for name, tensor in whole.items() if name.startswith("model.")}


def _tolerate(result: StepResult, step: int, num_skipped: int, config: TrainConfig, world: World) -> None:
    broken = {str(task): loss for task, loss in result.losses.items() if not np.isfinite(loss)}
    what = f"step {step}: losses {broken or 'finite'}, gradient norm {result.gradient_norm}"
    log.warning("%s; the step is skipped (%d so far)", what, num_skipped)
    if num_skipped > config.max_nonfinite_steps:
        suspects = world.gather(result.suspects)
        samples = {str(task): ids for task in result.suspects if (ids := [i for rank in suspects for i in rank[task]])}
        raise NonFiniteError(
            f"{what}; more than train.max_nonfinite_steps={config.max_nonfinite_steps} steps were not finite."
            f" Samples in question: {samples}."
            " Lower the learning rate or look at the samples"
        )
