"""Saves checkpoints while training goes on.

    save: a thread of low priority copies the rank's shards into memory that it keeps, and writes them
    before_update: training waits until they are copied, with passes done meanwhile (as CheckFreq, FAST '21)
    poll, once a step: all ranks have written -> the leader finishes the folder (`checkpoint.py`) and prunes old ones

A rank that cannot write tells the others: the attempt is dropped, loudly, and the last checkpoint stays what it is.
"""

import logging
import math
import os
import statistics
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ufork.checkpoint.config import CheckpointConfig
from ufork.checkpoint.folder import CheckpointFolder, CheckpointState, FileRecord, TrainState
from ufork.data.stream import TrainingStream
from ufork.data.stream_state import StreamState, join_states
from ufork.errors import StorageError
from ufork.parallel.engine.rank_state import EngineState
from ufork.parallel.engine.state_files import FileImage, state_path
from ufork.parallel.layout import MeshCoordinate
from ufork.parallel.transport.bridge import Bridge
from ufork.vocabulary import Task

log = logging.getLogger(__name__)

RETENTION = {"keep", "keep_every_steps", "keep_best", "best_by"}
"""Those fields of CheckpointConfig that `CheckpointFolder.prune` takes."""
LOWEST_PRIORITY = 19
"""Linux's nice value, a thread's own: copying takes a core that training has a better use for."""


@dataclass
class _Writing:
    """A file on its way to the disk."""

    position: TrainState
    stream: StreamState
    losses: Mapping[Task, float]
    thread: threading.Thread = field(init=False)
    copied: threading.Event = field(default_factory=threading.Event)
    record: FileRecord | None = None
    fault: str = ""


class Saver:
    """One rank's part in the checkpoints of a stage; all ranks with work have one and call it alike."""

    def __init__(
        self,
        shards: EngineState | None,
        bridge: Bridge,
        coordinate: MeshCoordinate,
        folder: CheckpointFolder,
        config: CheckpointConfig,
        *,
        run_metadata: Mapping[str, Any],
        start: TrainState,
    ):
        """Prepares to save this rank's part.

        Args:
            shards: this rank's part of weights and optimizer state; None if its stage trains nothing.
            bridge: connects all ranks with work.
            place: of this rank in its stage.
            folder: of the phase's checkpoints, held by this job.
            config: how often to save, and what to keep.
            run_metadata: on the leader, what `CheckpointState` says of the recipe and the job.
            start: where training began.
        """
        self.shards, self.bridge, self.coordinate = shards, bridge, coordinate
        self.folder, self.config, self.run_metadata = folder, config, run_metadata
        self._writing: _Writing | None = None
        self._image: FileImage | None = None
        self._pruning: threading.Thread | None = None
        self._num_failed = 0
        self._newest_step = start.step
        self._losses: list[Mapping[Task, float]] = []

    @property
    def is_writing(self) -> bool:
        """Whether a save is under way."""
        return self._writing is not None

    def after_step(
        self, position: TrainState, stream: TrainingStream | None, losses: Mapping[Task, float] | None = None
    ) -> None:
        """Finishes a save that all ranks have written, and begins one where the recipe asks for it; as `save`.

        Args:
            position: of the stage, the leader's.
            stream: of ranks that read data.
            losses: of the step that was taken.
        """
        self._losses.append(losses or {})
        self.poll()
        if position.step % self.config.every_steps == 0:
            self.save(position, stream)

    def save(self, position: TrainState, stream: TrainingStream | None) -> None:
        """Begins to copy what this rank holds and to write it; a save that is still under way is finished before.

        Weights may change only after `before_update`. A second save after the same step, or one where the stage began,
        does nothing.

        Args:
            position: of the stage, the leader's.
            stream: of ranks that read data.

        Raises:
            StorageError: too many saves have failed.
            PeerError: a rank is gone.
        """
        self.finish()
        if position.step == self._newest_step:
            return
        self._newest_step = position.step
        told = self.bridge.gather(stream.state().model_dump(mode="json") if stream else None)
        coordinates = [StreamState.model_validate(each) for each in told if each]
        self._writing = _Writing(position, join_states(coordinates), _means(self._losses))
        self._losses = []
        if self.shards:
            self._image = self.shards.read().image(self._image.memory if self._image else None)
        self._writing.thread = self._in_background(self._writing, self._image)

    def _in_background(self, writing: _Writing, image: FileImage | None) -> threading.Thread:
        path = state_path(self.folder.unfinished(writing.position.step), self.coordinate)

        def write() -> None:
            try:
                if sys.platform == "linux":  # others have no priority of a thread
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
                if image:  # a stage that trains nothing has none
                    image.fill()
                    writing.copied.set()
                    path.parent.mkdir(parents=True, exist_ok=True)
                    checksum = image.write(path)
                    writing.record = FileRecord(bytes=path.stat().st_size, checksum=checksum)
            except Exception as error:  # whatever it is, the other ranks wait to hear of it
                writing.fault = f"{path}: {error}"
            finally:
                writing.copied.set()

        thread = threading.Thread(target=write, name="checkpoint")
        thread.start()
        return thread

    def before_update(self) -> None:
        """Waits until a save that is under way has copied the weights."""
        if self._writing:
            self._writing.copied.wait()

    def poll(self) -> None:
        """Finishes a save that all ranks have written; call it once a step. Raises as `save`."""
        if self._writing is None:
            return
        (written,) = self.bridge.sum(float(not self._writing.thread.is_alive()), waits_for="the checkpoint's files")
        if written == self.bridge.size:
            self._conclude(self._writing)

    def finish(self) -> None:
        """Waits for a save that is under way, and finishes it, and for old ones to be removed. Raises as `save`."""
        if self._writing is not None:
            self._writing.thread.join()
            self._conclude(self._writing)
        if self._pruning:
            self._pruning.join()

    def _conclude(self, writing: _Writing) -> None:
        self._writing = None
        path = state_path(Path(), self.coordinate)
        told = self.bridge.gather([str(path), writing.record and writing.record.model_dump(), writing.fault])
        faults = [fault for _, _, fault in told if fault]
        if self.bridge.is_leader and not faults:
            files = {name: FileRecord(**record) for name, record, _ in told if record}
            faults = self._attempt(lambda: self._finish_folder(writing, files))
        (failed,) = self.bridge.sum(float(bool(faults)) if self.bridge.is_leader else 0.0)
        if failed:
            self._tolerate(writing.position.step, faults)

    @staticmethod
    def _attempt(action: Callable[[], None]) -> list[str]:
        try:
            action()
        except OSError as error:
            return [str(error)]
        return []

    def _finish_folder(self, writing: _Writing, files: Mapping[str, FileRecord]) -> None:
        path = self.folder.finish(
            CheckpointState(
                position=writing.position,
                stream=writing.stream,
                files=files,
                losses=writing.losses,
                **self.run_metadata,
            )
        )
        log.info("checkpoint: %s", path)
        self._pruning = threading.Thread(target=self._prune, name="prune")  # large files take their time to go
        self._pruning.start()

    def _prune(self) -> None:
        try:
            self.folder.prune(**self.config.model_dump(include=RETENTION))
        except OSError as error:
            log.warning("old checkpoints could not be removed (%s)", error)

    def _tolerate(self, step: int, faults: list[str]) -> None:
        self._num_failed += 1
        told = f"the checkpoint after step {step} could not be written ({'; '.join(faults) or 'see the leader'})"
        if self.bridge.is_leader:
            self.folder.drop(step)
            log.error("%s; the last checkpoint stays valid", told)
        if self._num_failed > self.config.max_failed:
            raise StorageError(
                f"{told}; more than train.checkpoint.max_failed={self.config.max_failed} failed: free space, and run"
                " the same command again"
            )


def _means(losses: Sequence[Mapping[Task, float]]) -> dict[Task, float]:
    """Of each task's losses that are finite."""
    by_task: dict[Task, list[float]] = {}
    for task, loss in (item for each in losses for item in each.items() if math.isfinite(item[1])):
        by_task.setdefault(task, []).append(loss)
    return {task: statistics.fmean(values) for task, values in by_task.items()}
