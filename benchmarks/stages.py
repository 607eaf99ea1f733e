"""A rank's training stage with initial weights, for benchmarks that run on ranks."""

import torch

from pipelines.launch.local_ranks import free_port
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import make_layout
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import World
from ufork.train.build_stage import build_stage, dtype_of
from ufork.train.config import TrainConfig
from ufork.train.initial_model import InitialModel
from ufork.train.stage import TrainingStage


def single_rank() -> RankEnvironment:
    """Returns the environment of a job of one rank: this process."""
    return RankEnvironment(rank=0, world_size=1, local_rank=0, master_address="127.0.0.1", master_port=free_port())


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
    modules = build_modules(world, model, dimensions, config)
    return open_stage_of(world, modules, config, seq_len=seq_len, layout=layout, name=name)


def open_stage_of(
    world: World,
    modules: UniFork,
    config: TrainConfig,
    *,
    seq_len: int,
    layout: LayoutConfig | None = None,
    name: str = "benchmark",
) -> TrainingStage:
    """Opens the stage of `modules`, which `build_modules` has made."""
    layout = layout or LayoutConfig()
    sequences = config.global_batch_size.by_task
    bridge = world.open_bridge(make_layout(layout, num_ranks=world.size, global_batch_size=sequences), name)
    return build_stage(modules, config, layout, world, bridge, seq_len=seq_len)


def build_modules(world: World, model: ModelConfig, dimensions: Dimensions, config: TrainConfig) -> UniFork:
    """Returns the modules of this rank's stage, with the attention kernel that training would choose."""
    dtype = dtype_of(config, world)
    kernel = choose_attention_kernel(world.device, dtype)
    return initial_model(model, dimensions).build(world.coordinate.stage, kernel)


def close_stage(stage: TrainingStage) -> None:
    """Closes a stage after its last step, as a session does; all ranks with work must call."""
    stage.bridge.close()
    stage.engine.close()


def initial_model(model: ModelConfig, dimensions: Dimensions) -> InitialModel:
    """Weights of seed 0, and a codebook of zeros: speed does not depend on it."""
    return InitialModel(
        config=WeightsConfig(model=model, dimensions=dimensions),
        codebook_KE=torch.zeros(dimensions.codebook_size, dimensions.code_width),
    )
