"""One rank's work on `ufork train`: a recipe's stages, one after the other.

tokenizers of the run, model (fresh, or the previous stage's weights), stream, telemetry
-> ufork.train.loop.train_stage -> RUN/stages/NAME/weights, complete with the tokenizers
"""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.grid import grid_of
from pipelines.recipe import Recipe
from ufork.data.stream import TrainingStream
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.model import TEXT_FOLDER, VISION_FOLDER, TrainedModel
from ufork.model.attention import AttentionKernel, choose_attention_kernel, sdpa_attention
from ufork.model.config import Dimensions
from ufork.model.initialization import initialize
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig, load_weights, put_weights, save_weights
from ufork.parallel.address import RankAddress
from ufork.parallel.world import World, join_world
from ufork.train.config import TrainConfig
from ufork.train.loop import Weights, precision_of, train_stage
from ufork.train.telemetry import Telemetry
from ufork.vision.codec import ImageCodec
from ufork.vocabulary import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What all stages of a recipe share on this rank."""

    recipe: Recipe
    tokenizer: TextTokenizer
    codec: ImageCodec

    @classmethod
    def of(cls, recipe: Recipe) -> "_Job":
        folder = recipe.run_folder
        return cls(recipe, TextTokenizer.load(folder.text_tokenizer), ImageCodec.load(folder.vision_tokenizer))

    @property
    def weights_config(self) -> WeightsConfig:
        codebook_size, code_width = self.codec.codebook.shape
        dimensions = Dimensions(
            vocabulary_size=self.tokenizer.size,
            codebook_size=codebook_size,
            code_width=code_width,
            codes_per_position=self.codec.codes_per_position,
        )
        return WeightsConfig(model=self.recipe.model, dimensions=dimensions)

    def model(self, kernel: AttentionKernel = sdpa_attention) -> UniFork:
        """A model that has the codebook and arbitrary weights."""
        config = self.weights_config
        model = UniFork(config.model, config.dimensions, kernel)
        model.set_codebook(self.codec.codebook)
        return model


def train_on_rank(address: RankAddress, recipe: Recipe, stages: list[str]) -> None:
    """Trains `stages` in turn as the rank at `address`; each starts from the weights of the recipe's stage before it.

    Raises:
        UforkError: a tokenizer, shard, weight file or folder is at fault, losses are not finite, or a rank is gone.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger().setLevel(logging.INFO if address.rank == 0 else logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of DeepSpeed's calls
    if address.rank == 0:
        recipe.run_folder.record(recipe, ("text", "model", "data", "train", "stages"))
    job = _Job.of(recipe)
    timeout_seconds = max(recipe.stages[name].train.timeout_seconds for name in stages)
    with join_world(address, timeout_seconds=timeout_seconds) as world:
        for name in stages:
            _train_stage(job, name, world)
            world.sum(0.0)  # others read the weights only once the leader has written them


def _train_stage(job: _Job, name: str, world: World) -> None:
    recipe, stage = job.recipe, job.recipe.stages[name]
    number = list(recipe.stages).index(name)
    seed = recipe.run.seed + number  # each stage reads in an order of its own
    model = _starting_model(job, number, stage.train, world)
    stream = TrainingStream(
        stage.data,
        job.tokenizer,
        rows_per_step={task: getattr(stage.train.rows_per_step, task) for task in Task},
        replica=world.rank,
        num_replicas=world.size,
        folder=recipe.run_folder.path,
        seed=seed,
    )
    telemetry = Telemetry(
        stage.train,
        recipe.run_folder.stage(name),
        stage=name,
        run_config=recipe.model_dump(mode="json"),
        speaks=world.is_leader,
    )
    draws = stage.train.drawing_prompts and Task.GENERATION in recipe.model.tasks
    draw_grid = (lambda weights: _drawings(job, stage.train, weights)) if draws else None
    try:
        result = train_stage(model, stage.train, stream, telemetry, world, draw_grid=draw_grid)
    finally:
        telemetry.close()
    if world.is_leader:
        _export(job, result.weights, recipe.run_folder.weights(name))


def _starting_model(job: _Job, number: int, config: TrainConfig, world: World) -> UniFork:
    recipe = job.recipe
    dtype = torch.bfloat16 if precision_of(config, world) == "bf16" else torch.float32
    model = job.model(choose_attention_kernel(world.device, dtype))
    if number == 0:
        initialize(model, recipe.run.seed)
    else:
        previous = recipe.run_folder.weights(list(recipe.stages)[number - 1])
        put_weights(model, load_weights(previous)[0], origin=str(previous))
    return model


def _drawings(job: _Job, config: TrainConfig, weights: Weights) -> np.ndarray:
    """One picture (uint8 [rows, columns, 3]) of the stage's prompts, drawn on the CPU."""
    model = job.model()
    put_weights(model, weights, origin="training")
    prompts = list(config.drawing_prompts)
    return grid_of(TrainedModel(model, job.tokenizer, job.codec).draw(prompts, job.recipe.evaluate.draw))


def _export(job: _Job, weights: Weights, folder: Path) -> None:
    save_weights(folder, weights, job.weights_config)
    job.tokenizer.save(folder / TEXT_FOLDER)
    job.codec.save(folder / VISION_FOLDER)
    log.info("weights: %s", folder)
