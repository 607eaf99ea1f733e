"""A rank's training stage with a tiny model, for tests that run on ranks."""

import torch

from tests.tiny import DIMENSIONS, tiny_config
from ufork.model.config import ModelConfig
from ufork.model.initialization import initialize
from ufork.model.unifork import UniFork
from ufork.parallel.config import LayoutConfig
from ufork.parallel.engine.stage_part import build_part, collected_shapes
from ufork.parallel.layout import make_layout
from ufork.parallel.transport.stage_world import World
from ufork.train.build_stage import build_stage
from ufork.train.config import TrainConfig
from ufork.train.loop import Weights, whole_weights
from ufork.train.stage import TrainingStage
from ufork.vocabulary import Task


def open_stage(
    world: World,
    config: TrainConfig,
    *,
    model: ModelConfig | UniFork | None = None,
    layout: LayoutConfig | None = None,
    seq_len: int = 64,
    name: str = "test",
) -> TrainingStage:
    """This rank's stage, of the `model`'s part that it holds; `name` tells it from others in the same world."""
    layout = layout or LayoutConfig()
    sequences = {task: getattr(config.global_batch_size, task) for task in Task}
    bridge = world.open_bridge(make_layout(layout, num_ranks=world.size, global_batch_size=sequences), name)
    part = model if isinstance(model, UniFork) else _part(model or tiny_config(), world)
    return build_stage(part, config, layout, world, bridge, seq_len=seq_len)


def _part(config: ModelConfig, world: World) -> UniFork:
    part = build_part(config, DIMENSIONS, world.coordinate.stage)
    initialize(part, 0)
    generator = torch.Generator().manual_seed(7)
    part.set_codebook(torch.randn(DIMENSIONS.codebook_size, DIMENSIONS.code_width, generator=generator))
    return part


def weights_of(stage: TrainingStage, model: ModelConfig) -> Weights:
    """The whole model's weights, on the leader."""
    return whole_weights(stage, collected_shapes(model, DIMENSIONS, stage.layout))
