"""The checkpoints of one phase: each is a folder that is whole or not there, and only the newest job finishes them.

    CHECKPOINTS/holder.00000002                empty; made exclusively by the second start: the highest number holds
                step-00000120.2.unfinished/    being written by the ranks of start 2; renamed once state.json is in it
                step-00000120/{colocated | trunk, understanding, generation}/dpR-tpR.safetensors, state.json

A folder `step-*` in which `verify` finds no fault can be resumed from, whenever its writer was stopped. Everything
random in training follows from the run's seed and the position in the stream, so no state of random generators is kept.
"""

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ufork.checkpoint.state import CheckpointState, OtherVersionError, read_state, step_of, verify, write_state
from ufork.errors import CheckpointError, StorageError
from ufork.files import make_folder, storage_errors, sync
from ufork.vocabulary import Task

_HOLDER_NAME = re.compile(r"holder\.(\d{8})")
_UNFINISHED = ".unfinished"
_LEFT_OVER_NAME = re.compile(r"step-\d{8}\.(\d+|old)\.unfinished")


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint, and newer ones that are damaged."""

    path: Path | None
    damaged: Mapping[int, str]
    """Description of the damage, by step."""


class CheckpointFolder:
    """The checkpoints of one phase of a run.

    Attributes:
        restart: number of this job among those that have held the folder, from 1; 0 until `take`. Equal on all ranks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restart = 0

    def steps(self) -> list[int]:
        """Steps of all checkpoints, damaged ones included, in ascending order."""
        return sorted(step for path in self.path.glob("step-*") if (step := step_of(path)) is not None)

    def at(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.path / f"step-{step:08d}"

    def newest_valid(self) -> Found:
        """Searches from the newest checkpoint back, and reads every byte of each.

        Raises:
            OtherVersionError: one is of another version, which is no damage.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                verify(self.at(step), deep=True)
                return Found(self.at(step), damaged)
            except OtherVersionError:
                raise
            except CheckpointError as error:
                damaged[step] = str(error)
        return Found(None, damaged)

    def set_aside(self, step: int) -> Path:
        """Renames a damaged checkpoint, which would count as the newest one when old ones are pruned.

        Raises:
            StorageError: the folder cannot be written.
        """
        aside = self.path / f"{self.at(step).name}.damaged"
        with storage_errors(self.path):
            shutil.rmtree(aside, ignore_errors=True)
            return self.at(step).rename(aside)

    def num_starts(self) -> int:
        """Number of jobs that have held the folder."""
        return max(self._holders(), default=0)

    def _holders(self) -> list[int]:
        names = (_HOLDER_NAME.fullmatch(path.name) for path in self.path.glob("holder.*"))
        return [int(match[1]) for match in names if match]

    def _holder_path(self, number: int) -> Path:
        return self.path / f"holder.{number:08d}"

    def take(self) -> None:
        """Makes this job the folder's holder; jobs that held it before can no longer finish a checkpoint.

        Creating a file exclusively is atomic on local disks, NFS and Lustre, so no two jobs get the same number. The
        files stay: if old ones were removed, a slow job could create one of their numbers again.

        Raises:
            StorageError: the folder cannot be written.
        """
        make_folder(self.path)
        with storage_errors(self.path):
            number = self.num_starts() + 1
            while not _created(self._holder_path(number)):
                number += 1
            self.restart = number
            sync(self.path)
            self._remove_left_overs()

    def _remove_left_overs(self) -> None:
        """Removes what earlier jobs have not finished; a still newer job may be writing already."""
        for path in self.path.glob(f"*{_UNFINISHED}"):
            match = _LEFT_OVER_NAME.fullmatch(path.name)
            if match and (match[1] == "old" or int(match[1]) < self.restart):
                shutil.rmtree(path, ignore_errors=True)

    def unfinished(self, step: int) -> Path:
        """Folder into which this job's ranks write the files of the checkpoint after `step` steps."""
        return self.path / f"{self.at(step).name}.{self.restart}{_UNFINISHED}"

    def finish(self, state: CheckpointState) -> Path:
        """Completes the unfinished folder whose files `state` lists, and renames it; only the leader calls this.

        Raises:
            StorageError: a file cannot be written.
            OSError: the disk fails.
            CheckpointError: another job holds the folder by now.
        """
        step = state.train_state.step
        self._require_held()
        write_state(self.unfinished(step), state)
        self._require_held()
        finished = self.unfinished(step).rename(self.at(step))
        sync(self.path)
        return finished

    def _require_held(self) -> None:
        if not self._holder_path(self.restart).exists():
            raise CheckpointError(f"{self.path}: was moved or removed while this job was training; this job ends")
        if (newest := self.num_starts()) != self.restart:
            raise CheckpointError(
                f"{self.path}: a newer job (start {newest} of this run, this is start {self.restart}) has taken over;"
                " this job ends"
            )

    def drop(self, step: int) -> None:
        """Removes what was written of a checkpoint that failed."""
        shutil.rmtree(self.unfinished(step), ignore_errors=True)

    def prune(
        self, *, keep: int, keep_every_steps: int = 0, keep_best: int = 0, best_by: Task = Task.GENERATION
    ) -> list[int]:
        """Removes the checkpoints that no rule keeps; returns their steps. Arguments as in `CheckpointConfig`.

        Raises:
            OSError: a checkpoint cannot be renamed.
        """
        steps = self.steps()
        kept = {*steps[-keep:], *self._best(steps, best_by)[:keep_best]} if keep else set()
        if keep_every_steps:
            kept |= {step for step in steps if step % keep_every_steps == 0}
        removed = [step for step in steps if step not in kept]
        for step in removed:
            # Renamed first: a removal that is interrupted must not leave half a checkpoint under a valid name.
            leaving = self.at(step).rename(self.path / f"{self.at(step).name}.old{_UNFINISHED}")
            shutil.rmtree(leaving, ignore_errors=True)
        return removed

    def _best(self, steps: Sequence[int], task: Task) -> list[int]:
        """Steps of the checkpoints that record a loss of `task`, lowest loss first."""
        losses = {}
        for step in steps:
            with suppress(CheckpointError, StorageError):  # damaged: its loss is unknown
                losses[step] = read_state(self.at(step)).losses.get(task, math.inf)
        return sorted((step for step in losses if math.isfinite(losses[step])), key=losses.__getitem__)


def _created(path: Path) -> bool:
    """Creates an empty file; False if there is one already."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    return True
