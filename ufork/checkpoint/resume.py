"""Resuming from a checkpoint, in the layout it was written in or any other.

leader: newest valid checkpoint of the phase, checked against the recipe -> every rank: its shards, its stream position
"""

import logging
from functools import partial
from pathlib import Path

from torch import Tensor

from ufork.checkpoint.folder import CheckpointFolder
from ufork.checkpoint.parameters import open_parameters
from ufork.checkpoint.state import (
    STATE_FILE,
    RunMetadata,
    TrainState,
    describe_changes,
    read_state,
    require_unchanged,
    verify,
)
from ufork.data.stream import TrainingStream
from ufork.errors import CheckpointError, ConfigError
from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING
from ufork.model.weights import MODEL_PREFIX
from ufork.parallel.engine.rank_state import EngineShards
from ufork.parallel.engine.state_files import WEIGHT, ShardRegion, StateFiles
from ufork.parallel.transport.bridge import Bridge

log = logging.getLogger(__name__)


def find_checkpoint(
    folder: CheckpointFolder, resume: str, run_metadata: RunMetadata | None, bridge: Bridge, *, steps: int
) -> Path | None:
    """Takes the folder for this job, and returns the checkpoint that the leader chose; None to start from step 0.

    Args:
        folder: checkpoints of the phase.
        resume: `auto`, `never` or the path of a checkpoint, as `TrainConfig.resume`.
        run_metadata: metadata of this start, on the leader; not needed on other ranks.
        bridge: all ranks with work call this together.
        steps: steps of the phase.

    Raises:
        CheckpointError: a value that may not change has changed since the checkpoint was written.
        ConfigError: the checkpoint was written after more than `steps` steps.
        StorageError: the folder cannot be written.
        PeerError: a rank is gone.
    """
    found = None
    if bridge.is_leader:
        assert run_metadata is not None
        found = _choose(folder, resume, run_metadata, steps)
    chosen, folder.restart = bridge.gather([str(found) if found else None, folder.restart])[0]
    return Path(chosen) if chosen else None


def _choose(folder: CheckpointFolder, resume: str, run_metadata: RunMetadata, steps: int) -> Path | None:
    folder.take()
    if resume == "never":
        for step in folder.prune(keep=0):
            log.info("train.resume=never: removed %s", folder.at(step))
        return None
    found = folder.newest_valid()
    for step, fault in found.damaged.items():
        log.warning("skipped a damaged checkpoint: %s; moved to %s", fault, folder.set_aside(step))
    path = found.path or _named(resume)
    if path is None:
        return None
    state = read_state(path)
    require_unchanged(state, run_metadata.fixed, origin=path)
    done = state.train_state.step
    if done > steps:
        raise ConfigError(
            f"train.steps={steps}: {path} was written after {done} steps; set train.steps={done} or more, move later"
            " checkpoints away to resume from an earlier one, or start the phase over with"
            " phases.NAME.train.resume=never"
        )
    log.info("resumed: %s, after step %d", path, done)
    if changes := describe_changes(state.run_metadata, run_metadata):
        log.info("changed since step %d: %s", done, "; ".join(changes))
    return path


def _named(resume: str) -> Path | None:
    """The checkpoint that the recipe names as the phase's start."""
    if resume == "auto":
        return None
    try:
        verify(Path(resume), deep=True)
    except CheckpointError as error:
        raise CheckpointError(
            f"train.resume={resume}: {error}. Give the folder of a checkpoint (RUN/phases/NAME/checkpoints/step-N),"
            " auto, or never"
        ) from None
    return Path(resume)


def resume(shards: EngineShards | None, stream: TrainingStream | None, path: Path) -> TrainState:
    """Restores this rank's shards and stream from the checkpoint at `path`; returns how far the phase was trained.

    Args:
        shards: this rank's weights and optimizer state; None if its stage trains nothing.
        stream: this rank's data; None if it reads none.
        path: folder of the checkpoint.

    Raises:
        CheckpointError: a file is missing, or the data has changed.
    """
    state = read_state(path)
    if shards:
        with open_parameters(path, state) as files:
            optimizer_kinds = files.kinds() - {WEIGHT}
            shards.restore(partial(_region, files), optimizer_kinds, files.optimizer_steps)
    if stream:
        stream.restore(state.stream, origin=str(path / STATE_FILE))
    return state.train_state


def _region(files: StateFiles, kind: str, name: str, region: ShardRegion) -> Tensor | None:
    found = files.region(kind, name, region)
    if found is None and name == MODEL_PREFIX + TIED_HEAD:  # saved as one tied weight, a copy in this layout
        return files.region(kind, MODEL_PREFIX + TOKEN_EMBEDDING, region)
    return found
