"""A rank's training stage with a tiny model, for tests that run on ranks."""

from pathlib import Path

import torch

from tests.tiny import DIMENSIONS, shallow_config, tiny_config, tiny_tokenizer
from ufork.data.config import DataConfig, SourceConfig
from ufork.model.config import ModelConfig
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.engine.stage_modules import collected_shapes
from ufork.parallel.layout import make_layout
from ufork.parallel.transport.stage_world import World
from ufork.run_folder import RunFolder
from ufork.train.build_stage import build_stage
from ufork.train.config import GlobalBatchSize, TrainConfig, WandbConfig
from ufork.train.initial_model import InitialModel, Weights
from ufork.train.session import Phase
from ufork.train.stage import TrainingStage


def open_stage(
    world: World,
    config: TrainConfig,
    *,
    model: ModelConfig | UniFork | None = None,
    layout: LayoutConfig | None = None,
    seq_len: int = 64,
    name: str = "test",
) -> TrainingStage:
    """Opens this rank's stage with its modules of `model`; several in one world differ by `name`."""
    layout = layout or LayoutConfig()
    sequences = config.global_batch_size.by_task
    bridge = world.open_bridge(make_layout(layout, num_ranks=world.size, global_batch_size=sequences), name)
    modules = (
        model if isinstance(model, UniFork) else initial_model(model or tiny_config()).build(world.coordinate.stage)
    )
    return build_stage(modules, config, layout, world, bridge, seq_len=seq_len)


def initial_model(config: ModelConfig) -> InitialModel:
    """Weights of seed 0 and a random codebook."""
    generator = torch.Generator().manual_seed(7)
    return InitialModel(
        config=WeightsConfig(model=config, dimensions=DIMENSIONS),
        codebook_KE=torch.randn(DIMENSIONS.codebook_size, DIMENSIONS.code_width, generator=generator),
    )


def tiny_phase(folder: Path, *, name: str = "all", layout: LayoutConfig | None = None, **train) -> Phase:
    """A phase of a shallow model on the source `folder`/tiny, in fp32; `train` are values of its TrainConfig."""
    sources = (SourceConfig(folder="tiny"),)
    return Phase(
        name=name,
        initial=initial_model(shallow_config()),
        train=TrainConfig(
            global_batch_size=GlobalBatchSize(understanding=2, generation=2),
            precision="fp32",
            wandb=WandbConfig(mode="disabled"),
            **train,
        ),
        data=DataConfig(understanding=sources, generation=sources, seq_len=192, num_lanes=4),
        layout=layout or LayoutConfig(),
        tokenizer=tiny_tokenizer(),
        run=RunFolder(folder),
    )


def weights_of(stage: TrainingStage, model: ModelConfig) -> Weights:
    """The whole model's weights, on the leader."""
    return stage.whole_weights(collected_shapes(model, DIMENSIONS, stage.layout))
