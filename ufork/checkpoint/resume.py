"""Going on from a checkpoint, in whatever layout it was written and is read.

leader: newest valid one of the stage, held against the recipe -> every rank: its own shards, its place in the data
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ufork.checkpoint.folder import STATE_FILE, CheckpointFolder, TrainState, read_state, require_unchanged, verify
from ufork.data.stream import TrainingStream
from ufork.errors import CheckpointError
from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING
from ufork.model.weights import MODEL_PREFIX
from ufork.parallel.engine.rank_state import EngineState
from ufork.parallel.engine.state_files import WEIGHT, Part, StateFiles
from ufork.parallel.transport.bridge import Bridge

log = logging.getLogger(__name__)


def find_checkpoint(
    folder: CheckpointFolder, resume: str, run_metadata: Mapping[str, Any], bridge: Bridge
) -> Path | None:
    """The checkpoint to go on from, as the leader decides; None to start anew. Takes the folder for this job.

    Args:
        folder: of the stage.
        resume: `auto`, `never`, or the path of a checkpoint, as `TrainConfig.resume`.
        run_metadata: on the leader, what the checkpoints of this job will say (`CheckpointState`).
        bridge: all ranks with work call.

    Raises:
        CheckpointError: there is one, and what may not change has changed.
        StorageError: the folder cannot be written.
        PeerError: a rank is gone.
    """
    found = _decide(folder, resume, run_metadata) if bridge.is_leader else None
    chosen, folder.restart = bridge.gather([str(found) if found else None, folder.restart])[0]
    return Path(chosen) if chosen else None


def _decide(folder: CheckpointFolder, resume: str, run_metadata: Mapping[str, Any]) -> Path | None:
    folder.take()
    if resume == "never":
        for step in folder.prune(keep=0):
            log.info("train.resume=never: %s removed", folder.at(step))
        return None
    found = folder.newest_valid()
    for step, fault in found.passed_over.items():
        log.warning("checkpoint passed over: %s; it is %s now", fault, folder.set_aside(step))
    path = found.path or _named(resume)
    if path is None:
        return None
    state = read_state(path)
    require_unchanged(state, run_metadata["fixed"], origin=path)
    log.info("resumed: %s, after step %d", path, state.position.step)
    if state.layout != run_metadata["layout"]:
        log.info("its layout was %s, this one is %s", state.layout, run_metadata["layout"])
    return path


def _named(resume: str) -> Path | None:
    """The checkpoint that the recipe has a stage begin from."""
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


def resume(shards: EngineState | None, stream: TrainingStream | None, path: Path) -> TrainState:
    """Puts this rank where the checkpoint at `path` was; how far that is.

    Raises:
        CheckpointError: a file is missing, or the data has changed.
    """
    state = read_state(path)
    if shards:
        with StateFiles(path) as files:
            kept = files.kinds() - {WEIGHT}
            shards.restore(partial(_part, files), kept, files.optimizer_steps)
    if stream:
        stream.restore(state.stream, origin=str(path / STATE_FILE))
    return state.position


def _part(files: StateFiles, kind: str, name: str, part: Part) -> Tensor | None:
    found = files.part(kind, name, part)
    if found is None and name == MODEL_PREFIX + TIED_HEAD:  # one weight there, a copy of its own here
        return files.part(kind, MODEL_PREFIX + TOKEN_EMBEDDING, part)
    return found
