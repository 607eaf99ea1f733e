"""A rank's training stage with initial weights, for benchmarks that run on ranks."""

from ufork.model.config import Dimensions, ModelConfig
from ufork.model.initialization import initialize
from ufork.parallel.config import LayoutConfig
from ufork.parallel.engine.stage_part import build_part
from ufork.parallel.layout import make_layout
from ufork.parallel.transport.stage_world import World
from ufork.train.build_stage import build_stage
from ufork.train.config import TrainConfig
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
    """This rank's, in the colocated layout unless told otherwise; `name` tells it from others in the same world."""
    layout = layout or LayoutConfig()
    sequences = config.global_batch_size.by_task
    bridge = world.open_bridge(make_layout(layout, num_ranks=world.size, global_batch_size=sequences), name)
    part = build_part(model, dimensions, world.coordinate.stage)
    initialize(part, 0)
    return build_stage(part, config, layout, world, bridge, seq_len=seq_len)
