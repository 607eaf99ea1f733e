"""The model as drawing and analyses use it, made beside training from a copy of the whole weights.

Phase, whole weights, image codec -> TrainedModel on the rank's GPU in the phase's precision, or on the CPU in fp32
"""

from collections.abc import Callable

import torch

from ufork.infer.model import TrainedModel
from ufork.infer.steps import EagerSteps
from ufork.model.layers.attention import find_attention_kernel
from ufork.parallel.transport.stage_world import World
from ufork.train.build_stage import dtype_of
from ufork.train.config import TrainConfig
from ufork.train.initial_model import Weights
from ufork.train.session import Phase
from ufork.vision.codec import ImageCodec


def inference_dtype(config: TrainConfig, world: World) -> torch.dtype:
    """Returns what a model beside training computes in; raises as `precision_of`."""
    return dtype_of(config, world) if world.device.type == "cuda" else torch.float32


def inference_model(
    phase: Phase, weights: Weights, codec: ImageCodec, world: World, *, after_step: Callable[[], None]
) -> TrainedModel:
    """Returns the model of `weights`, which it copies; `after_step` is called after each of its decoding steps.

    Steps are not captured as CUDA graphs: a capture that fails, as when NCCL's watchdog looks at its events meanwhile,
    leaves the process unfit for training.
    """
    dtype = inference_dtype(phase.train, world)
    return TrainedModel.of_weights(
        weights,
        phase.initial.config,
        phase.tokenizer,
        codec.on(world.device),
        kernel=find_attention_kernel(world.device, dtype).kernel,
        device=world.device,
        dtype=dtype,
        origin="training",
        steps=EagerSteps(is_static=world.device.type == "cuda", after_step=after_step),
    )
