"""A rank's training stage with initial weights, for benchmarks that run on ranks."""

import torch

from ufork.model.config import Dimensions, ModelConfig
from ufork.model.weights import WeightsConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import make_layout
from ufork.parallel.transport.stage_world import World
from ufork.train.build_stage import build_stage
from ufork.train.config import TrainConfig
from ufork.train.initial_model import InitialModel
from ufork.train.stage import TrainingStage


def open_stage(
    world: World,
    model: ModelConfig,
    dimensions: Dimensions,
    config: TrainConfig,
    *,
    seq_len: int,
    layout: LayoutConfig | None = None,
    name: str = "benchmark",
) -> TrainingStage:
    """Opens this rank's stage, in the colocated layout by default; several in one world differ by `name`."""
    layout = layout or LayoutConfig()
    sequences = config.global_batch_size.by_task
    bridge = world.open_bridge(make_layout(layout, num_ranks=world.size, global_batch_size=sequences), name)
    return build_stage(
        initial_model(model, dimensions).build(world.coordinate.stage), config, layout, world, bridge, seq_len=seq_len
    )


def initial_model(model: ModelConfig, dimensions: Dimensions) -> InitialModel:
    """Weights of seed 0, and a codebook of zeros: speed does not depend on it."""
    return InitialModel(
        config=WeightsConfig(model=model, dimensions=dimensions),
        codebook_KE=torch.zeros(dimensions.codebook_size, dimensions.code_width),
    )
