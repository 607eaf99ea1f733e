"""Checkpoints: as they are, and with checksums that somebody has made fit."""

import json
from contextlib import suppress
from pathlib import Path

import torch

from tests.checkpoint.saved import sign
from tests.fuzz.mutations import json_text, safetensors
from tests.fuzz.targets.target import Target, differs
from tests.parallel.engine.test_state_files import write_shards
from ufork.checkpoint.state import STATE_FILE, CheckpointState, RunMetadata, TrainState, record_of, verify, write_state
from ufork.data.stream_state import StreamState
from ufork.parallel.engine.state_files import StateFiles

STEP = "step-00000010"
RANK_FILE = f"{STEP}/trunk/dp0-tp0.safetensors"


def write_checkpoint(folder: Path) -> None:
    """Writes a checkpoint of two ranks."""
    path = folder / STEP
    tensors = {"model.weight": torch.arange(12.0).view(4, 3), "model.bias": torch.ones(5)}
    write_shards(path, tensors, {"model.weight": 0}, dp=2, tp=1)
    write_state(
        path,
        CheckpointState(
            train_state=TrainState(step=10),
            run_metadata=RunMetadata(fixed={"model": {"hidden_size": 32}}, layout="colocated", versions={"torch": "2"}),
            stream=StreamState(seed=0, num_lanes=1, step=0, first_sequence={}, sources={}, taken={}),
            files={str(file.relative_to(path)): record_of(file) for file in sorted(path.glob("*/*"))},
        ),
    )


def read_checkpoint(folder: Path) -> object:
    """Reads all of a checkpoint, as resuming does."""
    state = verify(folder / STEP, deep=True)
    with StateFiles(folder / STEP, state.files) as files:
        kinds = sorted(files.kinds())
        names = {kind: sorted(files.names(kind)) for kind in kinds}
        whole = {(kind, name): files.whole(kind, name) for kind in kinds for name in names[kind]}
        tensors = {key: tensor.tolist() for key, tensor in whole.items() if tensor is not None}
        return state.model_dump(mode="json"), files.shapes(), files.optimizer_steps, str(tensors)


def read_forged_checkpoint(folder: Path) -> object:
    """Reads a checkpoint whose checksums fit, as somebody else may have made it."""
    path = folder / STEP
    with suppress(ValueError, TypeError, AttributeError, KeyError, OSError, RecursionError):
        content = json.loads((path / STATE_FILE).read_text())
        for name in content["files"]:
            content["files"][name] = record_of(path / name).model_dump()
        sign(path, content)
    return read_checkpoint(folder)


CHECKPOINTS: dict[str, Target] = {
    "checkpoint": Target(
        write=write_checkpoint,
        files={f"{STEP}/state.json": json_text, RANK_FILE: safetensors},
        read=read_checkpoint,
        fault=differs,
    ),
    "forged checkpoint": Target(
        write=write_checkpoint,
        files={f"{STEP}/state.json": json_text, RANK_FILE: safetensors},
        read=read_forged_checkpoint,
    ),
}
