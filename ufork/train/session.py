"""Opens one phase of training on one rank, from configs alone, and closes it again.

Phase + World -> checks -> bridge to the other ranks -> checkpoint to resume from, if there is one
              -> the stream of packed sequences; the stage's modules, engine and actions; both as the checkpoint left
                 them -> saver, telemetry -> Session, which `train_phase` trains
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any

from ufork.checkpoint.folder import CheckpointFolder
from ufork.checkpoint.resume import find_checkpoint, resume
from ufork.checkpoint.saver import Saver
from ufork.checkpoint.state import (
    FIXED_CODEBOOK,
    FIXED_DIMENSIONS,
    FIXED_INITIAL_WEIGHTS,
    FIXED_MODEL,
    FIXED_TOKENS,
    RunMetadata,
    TrainState,
    record_of,
)
from ufork.data.config import DataConfig
from ufork.data.prompts import CodecSizes
from ufork.data.stream import TrainingStream
from ufork.data.text_tokenizer import TextTokenizer
from ufork.files import Checksum
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.weights import WEIGHTS_NAME
from ufork.parallel.config import LayoutConfig
from ufork.parallel.engine.stage_modules import collected_shapes
from ufork.parallel.layout import Layout, Stage
from ufork.parallel.transport.bridge import Bridge
from ufork.parallel.transport.collect_weights import Shapes
from ufork.parallel.transport.stage_world import World
from ufork.run_folder import PhaseFolder, RunFolder, versions_in_use
from ufork.train.build_stage import build_stage, dtype_of
from ufork.train.check_phase import check_phase
from ufork.train.config import TrainConfig
from ufork.train.device_errors import device_errors
from ufork.train.initial_model import InitialModel, Weights
from ufork.train.stage import TrainingStage, reads_data
from ufork.train.telemetry import Telemetry

_NO_SETTINGS_OF_TRAIN = {
    "optimizer",
    "trainable",
    "resume",
    "checkpoint",
    "max_nonfinite_steps",
    "timeout_seconds",
    "log_every_steps",
    "draw_every_steps",
    "drawing_prompts",
    "gradient_conflict",
    "alignment",
    "wandb",
}
"""Values of `train` that may not change, and those that do not change the weights."""
_NO_SETTINGS_OF_DATA = {
    "num_lanes",
    "num_workers",
    "prefetch_steps",
    "worker_timeout_seconds",
    "max_skipped_share",
}
"""Likewise of `data`; the stream's own state has what may not change."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Everything that decides what one phase trains and where its files are; the same on every rank."""

    name: str
    initial: InitialModel
    train: TrainConfig
    data: DataConfig
    layout: LayoutConfig
    tokenizer: TextTokenizer
    run: RunFolder
    """Folder of the run, which folders of sources are relative to."""
    data_seed: int = 0
    """Seed of the order of samples."""
    run_config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe, for Weights & Biases to record."""

    @property
    def folder(self) -> PhaseFolder:
        """Folder that the phase writes into."""
        return self.run.phase(self.name)

    def layout_of(self, num_ranks: int) -> Layout:
        """Returns the layout of `num_ranks` ranks in this phase; raises as `check_phase`."""
        sizes = self.initial.config
        return check_phase(self.train, self.data, self.layout, sizes.model, sizes.dimensions, num_ranks=num_ranks)


@dataclass(frozen=True, kw_only=True)
class Session:
    """One phase, opened on one rank: what the train loop works with."""

    config: TrainConfig
    stage: TrainingStage
    telemetry: Telemetry
    """Reports on the leader, does nothing on other ranks."""
    stream: TrainingStream | None = None
    """Packed sequences for this rank's replica; None on ranks that read no data."""
    saver: Saver | None = None
    """Saves checkpoints; None saves none."""
    start: TrainState = field(default_factory=TrainState)
    """Progress at which training starts: the phase's beginning, or the checkpoint's step."""
    shapes: Shapes = field(default_factory=dict)
    """Names and shapes of the weights that the leader collects from each stage."""
    absent_weights: Weights = field(default_factory=dict)
    """Weights of the stages that are absent from this phase and do not change; on the leader only."""

    def whole_weights(self) -> Weights:
        """Returns all of the model's parameters (fp32, CPU) on the leader, none elsewhere; every rank must call."""
        return self.absent_weights | self.stage.whole_weights(self.shapes)

    def device_errors(self, action: str) -> AbstractContextManager[None]:
        """Raises CUDA's errors during `action` as ufork's (`ufork.train.device_errors`)."""
        seq_len = self.stage.sequences.seq_len
        return device_errors(
            f"phase {self.telemetry.phase}, {action}", self.config, seq_len=seq_len, device=self.stage.world.device
        )


@contextmanager
def open_session(phase: Phase, world: World, *, context: BaseContext | None = None) -> Iterator[Session]:
    """Opens `phase` on this rank, at its beginning or where its newest checkpoint left it, and closes it at the end.

    Every rank that has work in the phase must call. Telemetry, loader processes and engine are closed on errors too.

    Args:
        phase: what to train; the same on every rank.
        world: this rank's.
        context: how loader processes are started; needed if `phase.data.num_workers` is not 0.

    Raises:
        ConfigError: sizes, data and layout do not fit together.
        CheckpointError: weights or a checkpoint are damaged, or of another model.
        ShardError: a source is missing or damaged.
        StorageError: the phase's folder cannot be written.
        PeerError: another rank is gone.
    """
    with ExitStack() as opened:
        bridge = world.open_bridge(phase.layout_of(world.size), phase.name)
        run_metadata = _run_metadata(phase) if bridge.is_leader else None
        checkpoints = CheckpointFolder(phase.folder.checkpoints)
        found = find_checkpoint(checkpoints, phase.train.resume, run_metadata, bridge, steps=phase.train.steps)
        stream = _open_stream(phase, world, context) if reads_data(world.coordinate, bridge.layout) else None
        if stream:
            opened.callback(stream.close)
        building = f"phase {phase.name}, building the model"
        with device_errors(building, phase.train, seq_len=phase.data.seq_len, device=world.device):
            stage = open_stage(phase, world, bridge)
        opened.callback(stage.engine.close)
        start = resume(stage.engine.shards, stream, found) if found else TrainState()
        sizes = phase.initial.config
        shapes = collected_shapes(sizes.model, sizes.dimensions, bridge.layout)
        absent_weights = _absent_weights(phase, bridge.layout, shapes) if bridge.is_leader else {}
        telemetry = Telemetry(
            phase.train,
            phase.folder,
            phase=phase.name,
            run_config=dict(phase.run_config),
            is_leader=bridge.is_leader,
            start=start,
        )
        opened.callback(telemetry.close)
        saver = Saver(
            stage.engine.shards,
            bridge,
            world.coordinate,
            checkpoints,
            phase.train.checkpoint,
            run_metadata=run_metadata,
            start=start,
            timeout_seconds=world.timeout_seconds,
        )
        opened.callback(saver.close)
        try:
            yield Session(
                config=phase.train,
                stage=stage,
                telemetry=telemetry,
                stream=stream,
                saver=saver,
                start=start,
                shapes=shapes,
                absent_weights=absent_weights,
            )
            bridge.close()
        except BaseException:
            world.abort()  # the engine's end waits for the device, which may wait for a lost rank
            raise


def open_stage(phase: Phase, world: World, bridge: Bridge) -> TrainingStage:
    """Returns this rank's stage of `phase`, sharded over its ranks and with its schedule; raises as `open_session`."""
    dtype = dtype_of(phase.train, world)
    model = phase.initial.build(world.coordinate.stage, choose_attention_kernel(world.device, dtype))
    return build_stage(model, phase.train, phase.layout, world, bridge, seq_len=phase.data.seq_len)


def _open_stream(phase: Phase, world: World, context: BaseContext | None) -> TrainingStream:
    sizes = phase.initial.config.dimensions
    return TrainingStream(
        phase.data,
        phase.tokenizer,
        codec=CodecSizes(codes_per_position=sizes.codes_per_position, codebook_size=sizes.codebook_size),
        global_batch_size=phase.train.global_batch_size.by_task,
        replica=world.coordinate.dp_rank,
        num_replicas=world.dp_group.size(),
        folder=phase.run.path,
        seed=phase.data_seed,
        context=context,
        skipped_samples_folder=phase.folder.skipped_samples,
    )


def _run_metadata(phase: Phase) -> RunMetadata:
    config, previous = phase.initial.config, phase.initial.folder
    fixed = {
        FIXED_MODEL: config.model.model_dump(mode="json"),
        FIXED_DIMENSIONS: config.dimensions.model_dump(mode="json"),
        "train.optimizer": phase.train.optimizer,
        "train.trainable": phase.train.trainable,
        FIXED_INITIAL_WEIGHTS: record_of(previous / WEIGHTS_NAME).checksum if previous else None,
        FIXED_TOKENS: phase.tokenizer.checksum,
        FIXED_CODEBOOK: Checksum(phase.initial.codebook_KE.contiguous().numpy().tobytes()).hexdigest(),
    }
    settings = {
        "train": phase.train.model_dump(mode="json", exclude=_NO_SETTINGS_OF_TRAIN),
        "data": phase.data.model_dump(mode="json", exclude=_NO_SETTINGS_OF_DATA),
    }
    return RunMetadata(fixed=fixed, settings=settings, layout=phase.layout.describe(), versions=versions_in_use())


def _absent_weights(phase: Phase, layout: Layout, shapes: Shapes) -> Weights:
    if layout.reader is Stage.COLOCATED or len(layout.shapes) == len(phase.initial.config.model.tasks) + 1:
        return {}
    collected = {name for of_stage in shapes.values() for name in of_stage}
    whole = phase.initial.build(Stage.COLOCATED)
    # copies: until the end of the phase, a program may have written into the file that the model reads
    return {name: weight.detach().clone() for name, weight in whole.named_parameters() if name not in collected}
