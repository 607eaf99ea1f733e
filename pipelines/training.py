"""One rank's work on `ufork train`: a recipe's stages, one after the other.

tokenizers of the run, this rank's part of the model (fresh, or of the previous stage's weights), stream, telemetry
-> ufork.train.loop.train_phase -> RUN/phases/NAME/weights, complete with the tokenizers
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.doctor.banner import log_head
from pipelines.launch.ranks import has_cuda_device, process_context
from pipelines.launch.stop_signals import StopRequest, handled
from pipelines.recipe import Recipe
from ufork.checkpoint.folder import (
    FIXED_MODEL,
    FIXED_SIZES,
    FIXED_START,
    CheckpointFolder,
    TrainState,
    record_of,
)
from ufork.checkpoint.resume import find_checkpoint, resume
from ufork.checkpoint.saver import Saver
from ufork.data.stream import TrainingStream
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.model import TrainedModel, save_trained
from ufork.model.config import Dimensions
from ufork.model.initialization import initialize
from ufork.model.layers.attention import AttentionKernel, choose_attention_kernel, sdpa_attention
from ufork.model.unifork import UniFork
from ufork.model.weights import WEIGHTS_NAME, WeightsConfig, load_weights, put_weights, select_weights
from ufork.parallel.engine.stage_part import build_part, collected_shapes
from ufork.parallel.layout import Layout, Stage, make_layout
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import World, join_world
from ufork.report.grid import grid_of
from ufork.run_folder import versions_in_use
from ufork.train.build_stage import build_stage, precision_of
from ufork.train.config import TrainConfig
from ufork.train.loop import Hooks, Weights, train_phase
from ufork.train.stage import TrainingStage
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
            vocab_size=self.tokenizer.padded_size,
            codebook_size=codebook_size,
            code_width=code_width,
            codes_per_position=self.codec.codes_per_position,
        )
        return WeightsConfig(model=self.recipe.model, dimensions=dimensions)

    def model(self, weights: Weights) -> UniFork:
        """The whole model on the CPU, to draw with."""
        return self._with_weights(Stage.COLOCATED, sdpa_attention, weights, origin="training")

    def starting_part(self, stage: Stage, kernel: AttentionKernel, previous: Path | None) -> UniFork:
        """A stage's part of the model, with initial weights, or the part of `previous` that it holds."""
        if previous is not None:
            return self._with_weights(stage, kernel, load_weights(previous)[0], origin=str(previous))
        part = self._part(stage, kernel)
        initialize(part, self.recipe.run.seed)
        return part

    def _with_weights(self, stage: Stage, kernel: AttentionKernel, weights: Weights, *, origin: str) -> UniFork:
        part = self._part(stage, kernel)
        put_weights(part, weights if stage is Stage.COLOCATED else select_weights(weights, part), origin=origin)
        return part

    def _part(self, stage: Stage, kernel: AttentionKernel) -> UniFork:
        config = self.weights_config
        part = build_part(config.model, config.dimensions, stage, kernel)
        part.set_codebook(self.codec.codebook)
        return part


def train_on_rank(rank_env: RankEnvironment, recipe: Recipe, stages: list[str], *, trace: bool = False) -> None:
    """Trains `stages` in turn as the rank at `address`; each starts from the weights of the recipe's stage before it.

    With `trace`, a step of each stage is traced into its folder.

    Raises:
        UforkError: a tokenizer, shard, weight file or folder is at fault, losses are not finite, or a rank is gone.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger().setLevel(logging.INFO if rank_env.rank == 0 else logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of DeepSpeed's calls
    layouts = {name: _layout(recipe, name, rank_env.world_size) for name in stages}
    if rank_env.rank == 0:
        recipe.run_folder.record(recipe.model_dump(mode="json"), ("text", "model", "data", "layout", "train", "phases"))
        log_head(recipe.run_folder.path, has_gpu=has_cuda_device())
    job = _Job.of(recipe)
    timeout_seconds = max(recipe.phases[name].train.timeout_seconds for name in stages)
    asked = StopRequest()
    with handled(asked.receive), join_world(rank_env, recipe.layout, timeout_seconds=timeout_seconds) as world:
        for name in stages:
            if world.rank in layouts[name].present_ranks:
                _train_stage(job, name, world, layouts[name], asked_to_stop=asked, trace=trace)
            world.wait_until_finished(name)  # others read the weights only once the leader has written them


def _layout(recipe: Recipe, name: str, num_ranks: int) -> Layout:
    config = recipe.phases[name].train
    return make_layout(recipe.layout, num_ranks=num_ranks, global_batch_size=config.global_batch_size.by_task)


def _train_stage(
    job: _Job, name: str, world: World, layout: Layout, *, asked_to_stop: Callable[[], bool], trace: bool
) -> None:
    recipe, config = job.recipe, job.recipe.phases[name].train
    opened = _open_stage(job, name, world, layout)
    bridge = opened.stage.bridge
    telemetry = Telemetry(
        config,
        recipe.run_folder.phase(name),
        stage=name,
        run_config=recipe.model_dump(mode="json"),
        speaks=bridge.is_leader,
        start=opened.start,
    )
    draws = config.drawing_prompts and Task.GENERATION in recipe.model.tasks
    kept = _kept_weights(job, layout, _previous_weights(recipe, name)) if bridge.is_leader else {}
    try:
        weights = train_phase(
            opened.stage,
            config,
            opened.stream,
            telemetry,
            collected_shapes(recipe.model, job.weights_config.dimensions, layout),
            Hooks(
                start=opened.start,
                saver=opened.saver,
                asked_to_stop=asked_to_stop,
                draw_grid=(lambda weights: _drawings(job, config, kept | weights)) if draws else None,
                trace_folder=recipe.run_folder.phase(name) if trace else None,
            ),
        )
    finally:
        telemetry.close()
        if opened.stream:
            opened.stream.close()
    if bridge.is_leader:
        folder = recipe.run_folder.weights(name)
        save_trained(folder, kept | weights, job.weights_config, job.tokenizer, job.codec)
        log.info("weights: %s", folder)
        world.tell_finished(name)


@dataclass(frozen=True)
class _OpenedStage:
    """A stage of the recipe on this rank, at its beginning or where a checkpoint left it."""

    stage: TrainingStage
    stream: TrainingStream | None
    start: TrainState
    saver: Saver


def _open_stage(job: _Job, name: str, world: World, layout: Layout) -> _OpenedStage:
    recipe, config = job.recipe, job.recipe.phases[name]
    previous = _previous_weights(recipe, name)
    bridge = world.open_bridge(layout, name)
    checkpoints = CheckpointFolder(recipe.run_folder.checkpoints(name))
    facts = _facts(job, config.train, previous) if bridge.is_leader else {}
    resumed = find_checkpoint(checkpoints, config.train.resume, facts, bridge)
    dtype = torch.bfloat16 if precision_of(config.train, world.device) == "bf16" else torch.float32
    stage = build_stage(
        job.starting_part(world.coordinate.stage, choose_attention_kernel(world.device, dtype), previous),
        config.train,
        recipe.layout,
        world,
        bridge,
        seq_len=config.data.seq_len,
    )
    seed = recipe.run.seed + list(recipe.phases).index(name)  # each stage reads in an order of its own
    stream = _stream(job, name, stage, seed=seed)
    start = resume(stage.engine.shards, stream, resumed) if resumed else TrainState()
    return _OpenedStage(stage, stream, start, _saver(stage, checkpoints, config.train, facts, start))


def _saver(
    stage: TrainingStage, folder: CheckpointFolder, config: TrainConfig, facts: dict[str, Any], start: TrainState
) -> Saver:
    return Saver(
        stage.engine.shards, stage.bridge, stage.world.coordinate, folder, config.checkpoint, facts=facts, start=start
    )


def _previous_weights(recipe: Recipe, name: str) -> Path | None:
    """What the recipe's stage before `name` has left; None before the first."""
    number = list(recipe.phases).index(name)
    return recipe.run_folder.weights(list(recipe.phases)[number - 1]) if number else None


def _facts(job: _Job, config: TrainConfig, previous: Path | None) -> dict[str, Any]:
    """What a checkpoint says besides how far it is; the first of them may not change."""
    fixed = {
        FIXED_MODEL: job.weights_config.model.model_dump(mode="json"),
        FIXED_SIZES: job.weights_config.dimensions.model_dump(mode="json"),
        "train.optimizer": config.optimizer,
        "train.trainable": config.trainable,
        FIXED_START: record_of(previous / WEIGHTS_NAME).checksum if previous else None,
    }
    return {"fixed": fixed, "layout": job.recipe.layout.describe(), "versions": versions_in_use()}


def _stream(job: _Job, name: str, stage: TrainingStage, *, seed: int) -> TrainingStream | None:
    if not stage.reads_data:
        return None
    config = job.recipe.phases[name]
    return TrainingStream(
        config.data,
        job.tokenizer,
        global_batch_size=config.train.global_batch_size.by_task,
        replica=stage.world.coordinate.dp_rank,
        num_replicas=stage.world.dp_group.size(),
        folder=job.recipe.run_folder.path,
        seed=seed,
        context=process_context(("ufork.data.stream",)),
        skipped_samples_folder=job.recipe.run_folder.skipped_samples(name),
    )


def _kept_weights(job: _Job, layout: Layout, previous: Path | None) -> Weights:
    """Those of the stages that are absent from `layout`: they stay what they were."""
    if layout.reader is Stage.COLOCATED or len(layout.shapes) == len(job.recipe.model.tasks) + 1:
        return {}
    whole = job.starting_part(Stage.COLOCATED, sdpa_attention, previous)
    return {name: parameter.detach() for name, parameter in whole.named_parameters()}


def _drawings(job: _Job, config: TrainConfig, weights: Weights) -> np.ndarray:
    """One picture (uint8 [rows, columns, 3]) of the stage's prompts, drawn on the CPU."""
    model = job.model(weights)
    prompts = list(config.drawing_prompts)
    return grid_of(TrainedModel(model, job.tokenizer, job.codec).draw(prompts, job.recipe.evaluate.draw))
