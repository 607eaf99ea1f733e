"""A checkpoint: one folder that is whole or not there, from which a stage of a recipe goes on exactly.

    CHECKPOINTS/step-00000120/{whole | trunk, understanding, generation}/dpR-tpR.safetensors   ZeRO's shards, by name
                              state.json   step, stream, sizes, layout, versions, checksum of every file

It is written under another name, `state.json` last of all, and renamed: a folder `step-*` without a fault in `verify`
is one to go on from, whenever the writer was stopped. What is random in training follows from the run's seed and the
place in the stream, so there is no state of random generators to keep.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt

from ufork.config import Config
from ufork.data.stream_state import StreamState
from ufork.errors import CheckpointError, ConfigError, StorageError
from ufork.files import checksum_of
from ufork.vocabulary import Task

CHECKPOINT_VERSION = 3
STATE_FILE = "state.json"
HOLDER_FILE = "holder"
FIXED_MODEL, FIXED_SIZES = "model", "sizes by the tokenizers"
FIXED_START = "the weights of the stage before"
"""Of what may not change: the model's sizes, and the checksum of the weights that the stage began with."""
_STEP_NAME = re.compile(r"step-(\d{8})")
_UNFINISHED = ".unfinished"


class FileRecord(Config):
    """One file of a checkpoint."""

    bytes: NonNegativeInt
    checksum: str
    """As `ufork.files` takes it."""


class TrainState(Config):
    """How far a stage has come."""

    step: NonNegativeInt = 0
    """Steps that were taken."""
    seconds: NonNegativeFloat = 0.0
    """That it has lasted, over all its starts."""
    steps_skipped: NonNegativeInt = 0
    """For losses or gradients that were not finite."""


class CheckpointState(Config):
    """What `state.json` says."""

    version: int = CHECKPOINT_VERSION
    position: TrainState
    fixed: Mapping[str, Any]
    """What may not change between two starts, by the recipe's name for it."""
    layout: str
    """In words: it may change."""
    stream: StreamState
    versions: Mapping[str, str]
    files: Mapping[str, FileRecord]
    """By path within the folder: all but this one."""
    losses: Mapping[Task, float] = {}
    """Means over the steps since the save before."""


@dataclass(frozen=True)
class Found:
    """The newest checkpoint to go on from, and newer ones that are damaged."""

    path: Path | None
    passed_over: Mapping[int, str]
    """By step, what is wrong with them."""


class CheckpointFolder:
    """The checkpoints of one stage of a run.

    Attributes:
        restart: how many jobs have held the folder, this one included; the same on all ranks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restart = 0

    def steps(self) -> list[int]:
        """Of the checkpoints there are, damaged ones included, in order."""
        found = (_STEP_NAME.fullmatch(path.name) for path in self.path.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def at(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.path / f"step-{step:08d}"

    def newest_valid(self) -> Found:
        """Looks from the newest back, and reads each to the last byte."""
        faults: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                verify(self.at(step), deep=True)
                return Found(self.at(step), faults)
            except CheckpointError as error:
                faults[step] = str(error)
        return Found(None, faults)

    def set_aside(self, step: int) -> Path:
        """Takes a damaged one away, or it would pass for the newest when old ones are pruned; its new place."""
        aside = self.path / f"{self.at(step).name}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        return self.at(step).rename(aside)

    def take(self) -> None:
        """Makes this job the folder's holder; a job that held it before can no longer finish a checkpoint.

        Raises:
            StorageError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.restart = self._holder() + 1
            draft = self.path / f"{HOLDER_FILE}{_UNFINISHED}"
            draft.write_text(str(self.restart), encoding="utf-8")
            draft.replace(self.path / HOLDER_FILE)
            for left in self.path.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written ({error.strerror}); free space or permit writing there"
            ) from None

    def _holder(self) -> int:
        try:
            return int((self.path / HOLDER_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0

    def unfinished(self, step: int) -> Path:
        """Where this job's ranks write the files of the checkpoint after `step` steps."""
        return self.path / f"{self.at(step).name}.{self.restart}{_UNFINISHED}"

    def finish(self, state: CheckpointState) -> Path:
        """Makes a checkpoint of the unfinished folder whose files `state` lists; only the leader calls.

        Raises:
            OSError: it cannot be written.
            CheckpointError: another job holds the folder by now.
        """
        folder = self.unfinished(state.position.step)
        self._require_held()
        write_state(folder, state)
        self._require_held()
        target = folder.rename(self.at(state.position.step))
        _sync(self.path)
        return target

    def _require_held(self) -> None:
        if (holder := self._holder()) != self.restart:
            raise CheckpointError(
                f"{self.path}: a newer job (start {holder} of this run, this is start {self.restart}) has taken over;"
                " this one ends"
            )

    def drop(self, step: int) -> None:
        """Removes what was written of an attempt."""
        shutil.rmtree(self.unfinished(step), ignore_errors=True)

    def prune(
        self, *, keep: int, keep_every_steps: int = 0, keep_best: int = 0, best_by: Task = Task.GENERATION
    ) -> list[int]:
        """Removes what `CheckpointConfig` has no reason to keep; the steps removed."""
        steps = self.steps()
        kept = {*steps[-keep:], *self._best(steps, best_by)[:keep_best]} if keep else set()
        if keep_every_steps:
            kept |= {step for step in steps if step % keep_every_steps == 0}
        removed = [step for step in steps if step not in kept]
        for step in removed:
            # Never half a checkpoint under a whole one's name.
            leaving = self.at(step).rename(self.path / f"{self.at(step).name}.old{_UNFINISHED}")
            shutil.rmtree(leaving, ignore_errors=True)
        return removed

    def _best(self, steps: Sequence[int], task: Task) -> list[int]:
        """Those that tell a loss of `task`, the lowest first."""
        losses = {}
        for step in steps:
            with suppress(CheckpointError):  # a damaged one is nobody's best
                losses[step] = read_state(self.at(step)).losses.get(task, math.inf)
        return sorted((step for step in losses if math.isfinite(losses[step])), key=losses.__getitem__)


def write_state(folder: Path, state: CheckpointState) -> None:
    """Makes the files in `folder` a checkpoint, through to the disk.

    Raises:
        OSError: it cannot be written.
    """
    with open(folder / STATE_FILE, "w", encoding="utf-8") as file:
        file.write(state.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    for inside in (*{folder / Path(name).parent for name in state.files}, folder):
        _sync(inside)


def read_state(path: Path) -> CheckpointState:
    """What the checkpoint at `path` says of itself.

    Raises:
        CheckpointError: it is not whole, or not of this version.
    """
    try:
        mapping: dict[str, Any] = json.loads((path / STATE_FILE).read_bytes())
        if mapping.get("version") != CHECKPOINT_VERSION:
            raise CheckpointError(f"{path}: version {mapping.get('version')}, expected {CHECKPOINT_VERSION}")
        return CheckpointState.from_mapping(mapping, origin=str(path / STATE_FILE))
    except OSError as error:
        raise CheckpointError(f"{path}: {STATE_FILE} cannot be read ({error.strerror}); it was not finished") from None
    except (ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path}: {STATE_FILE} is damaged ({error})") from None


def verify(path: Path, *, deep: bool) -> CheckpointState:
    """Holds the files of a checkpoint against what it says of them: their sizes, and their checksums if `deep`.

    Raises:
        CheckpointError: names the first file at fault.
    """
    state = read_state(path)
    for name, record in state.files.items():
        try:
            size = (path / name).stat().st_size
            found = record_of(path / name) if deep and size == record.bytes else None
        except OSError as error:
            raise CheckpointError(f"{path / name}: cannot be read ({error.strerror})") from None
        if size != record.bytes:
            raise CheckpointError(f"{path / name}: {size} bytes, {STATE_FILE} says {record.bytes}")
        if found and found != record:
            raise CheckpointError(f"{path / name}: its checksum is not what {STATE_FILE} says; the file has changed")
    return state


def require_unchanged(state: CheckpointState, fixed: Mapping[str, Any], *, origin: Path) -> None:
    """Holds what may not change against what it is now.

    Raises:
        CheckpointError: names each value that has changed, and what it was.
    """
    now = json.loads(json.dumps(fixed))
    changed = [f"{name} was {was}, is {now.get(name)}" for name, was in state.fixed.items() if now.get(name) != was]
    if changed:
        raise CheckpointError(
            f"{origin}: it cannot be gone on from, since {'; '.join(changed)}. Restore that, or start the stage anew"
            " with train.resume=never"
        )


def record_of(path: Path) -> FileRecord:
    """Size and checksum of a file."""
    return FileRecord(bytes=path.stat().st_size, checksum=checksum_of(path))


def _sync(folder: Path) -> None:
    """Has the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
