"""Saving checkpoints while training continues.

    save: this rank's shards are copied into memory of their own (`snapshot.py`), and a thread writes them to a file
    before_update: the next update waits until they are copied, with forward and backward passes done meanwhile
    poll, once a step: when all ranks have written, the leader finishes the folder (`folder.py`) and prunes old ones

A rank that cannot copy or write reports it to the others: that checkpoint is dropped with an error in the log, and the
previous one stays valid.
"""

import logging
import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ufork.checkpoint.config import CheckpointConfig
from ufork.checkpoint.folder import CheckpointFolder
from ufork.checkpoint.snapshot import Snapshot, snapshot_of
from ufork.checkpoint.state import CheckpointState, FileRecord, RunMetadata, TrainState
from ufork.data.stream import TrainingStream
from ufork.data.stream_state import StreamState, join_states
from ufork.errors import StorageError
from ufork.parallel.engine.rank_state import EngineShards
from ufork.parallel.engine.state_files import FileImage, state_path
from ufork.parallel.layout import MeshCoordinate
from ufork.parallel.transport.bridge import Bridge
from ufork.vocabulary import Task

log = logging.getLogger(__name__)

RETENTION = {"keep", "keep_every_steps", "keep_best", "best_by"}
"""Fields of CheckpointConfig that `CheckpointFolder.prune` takes."""

REPORT_SECONDS = 60.0
"""Interval at which a rank that waits for its own file reports it."""


@dataclass
class _Writing:
    """A checkpoint file that is being written."""

    train_state: TrainState
    stream: StreamState
    losses: Mapping[Task, float]
    path: Path
    thread: threading.Thread = field(init=False)
    record: FileRecord | None = None
    fault: str = ""


class Saver:
    """Saves one rank's share of a phase's checkpoints; all ranks with work have a saver and call it alike."""

    def __init__(
        self,
        shards: EngineShards | None,
        bridge: Bridge,
        coordinate: MeshCoordinate,
        folder: CheckpointFolder,
        config: CheckpointConfig,
        *,
        run_metadata: RunMetadata | None,
        start: TrainState,
        timeout_seconds: float,
    ):
        """Prepares to save this rank's shards.

        Args:
            shards: this rank's weights and optimizer state; None if its stage trains nothing.
            bridge: connects all ranks with work.
            coordinate: mesh coordinate of this rank.
            folder: checkpoints of the phase, held by this job.
            config: how often to save, and what to keep.
            run_metadata: metadata of this start, on the leader; not needed on other ranks.
            start: train state that training starts from.
            timeout_seconds: how long a device may take until it has copied the shards.
        """
        self.shards, self.bridge, self.coordinate = shards, bridge, coordinate
        self.folder, self.config, self.run_metadata = folder, config, run_metadata
        self._timeout_seconds = timeout_seconds
        self._writing: _Writing | None = None
        self._image: FileImage | None = None
        self._snapshot: Snapshot | None = None
        self._pruning: threading.Thread | None = None
        self._num_failed = 0
        self._newest_step = start.step
        self._losses: list[Mapping[Task, float]] = []

    def after_step(
        self, train_state: TrainState, stream: TrainingStream | None, losses: Mapping[Task, float] | None = None
    ) -> None:
        """Finishes a save that all ranks have written, and starts one if it is due. Raises as `save`.

        Args:
            train_state: of the phase, on the leader.
            stream: on ranks that read data.
            losses: of the step that was taken.
        """
        self._losses.append(losses or {})
        self.poll()
        if train_state.step % self.config.every_steps == 0:
            self.save(train_state, stream)

    def save(self, train_state: TrainState, stream: TrainingStream | None) -> None:
        """Starts to copy and write this rank's shards, after finishing a save that is still in progress.

        Weights may change only after `before_update`. Does nothing if the step was saved before or is the one that
        training started from.

        Args:
            train_state: of the phase, on the leader.
            stream: on ranks that read data.

        Raises:
            StorageError: too many saves have failed.
            CheckpointError: a newer job holds the folder.
            PeerError: a rank is gone.
        """
        self.finish()
        if train_state.step == self._newest_step:
            return
        self._newest_step = train_state.step
        reported = self.bridge.gather(stream.state().model_dump(mode="json") if stream else None)
        states = [StreamState.model_validate(each) for each in reported if each]
        path = state_path(self.folder.unfinished(train_state.step), self.coordinate)
        self._writing = _Writing(train_state, join_states(states), _means(self._losses), path)
        self._losses = []
        self.bridge.wait_for_device("the update before the checkpoint")  # the count of updates is read from there
        self._begin_copy(self._writing)
        self._writing.thread = threading.Thread(target=self._write, args=(self._writing,), name="checkpoint")
        self._writing.thread.start()

    def _begin_copy(self, writing: _Writing) -> None:
        if self.shards is None:
            return
        try:
            self._image = self.shards.read().image(self._image.memory if self._image else None)
            self._snapshot = self._snapshot or snapshot_of(self._image, timeout_seconds=self._timeout_seconds)
            self._snapshot.begin(self._image)
        except (OSError, MemoryError, RuntimeError) as error:  # no memory, or CUDA refuses: the other ranks continue
            writing.fault = f"{writing.path}: the weights cannot be copied ({error})"

    def _write(self, writing: _Writing) -> None:
        """Runs in a thread of its own."""
        try:
            snapshot, image = self._snapshot, self._image
            if snapshot is None or image is None or writing.fault:  # it has nothing to write
                return
            snapshot.complete()
            writing.path.parent.mkdir(parents=True, exist_ok=True)
            checksum = image.write(writing.path)
            writing.record = FileRecord(bytes=writing.path.stat().st_size, checksum=checksum)
        except Exception as error:  # of any kind: the other ranks wait for this rank's result
            writing.fault = f"{writing.path}: {error}"

    def before_update(self) -> None:
        """Makes the next update wait until a save in progress has copied the weights."""
        if self._writing and self._snapshot:
            self._snapshot.before_update()

    def poll(self) -> None:
        """Finishes a save that all ranks have written; call this once a step. Raises as `save`."""
        if self._writing is None:
            return
        (written,) = self.bridge.sum(float(not self._writing.thread.is_alive()), waits_for="the checkpoint's files")
        if written == self.bridge.size:
            self._conclude(self._writing)

    def finish(self) -> None:
        """Waits for a save in progress and finishes it, and waits for the removal of old ones. Raises as `save`."""
        if self._writing is not None:
            self._wait_for_thread(self._writing)
            self._conclude(self._writing)
        if self._pruning:
            self._pruning.join()

    @staticmethod
    def _wait_for_thread(writing: _Writing) -> None:
        """Waits as long as the disk takes; a device that does not copy has a time limit (`Snapshot.complete`)."""
        began = time.monotonic()
        writing.thread.join(REPORT_SECONDS)
        while writing.thread.is_alive():
            log.warning("waiting for %s to be written, for %.0f s so far", writing.path, time.monotonic() - began)
            writing.thread.join(REPORT_SECONDS)

    def close(self) -> None:
        """Ends the use of the engine's memory; frees the copy's unless a save that was cut off still uses it."""
        if self._snapshot:
            self._snapshot.close()
        if self._writing is None:
            self._snapshot = self._image = None

    def _conclude(self, writing: _Writing) -> None:
        self._writing = None
        path = state_path(Path(), self.coordinate)
        reported = self.bridge.gather([str(path), writing.record and writing.record.model_dump(), writing.fault])
        faults = [fault for _, _, fault in reported if fault]
        if self.bridge.is_leader and not faults:
            files = {name: FileRecord(**record) for name, record, _ in reported if record}
            faults = self._attempt(lambda: self._finish_folder(writing, files))
        (failed,) = self.bridge.sum(float(bool(faults)) if self.bridge.is_leader else 0.0)
        if failed:
            self._tolerate(writing.train_state.step, faults)

    @staticmethod
    def _attempt(action: Callable[[], None]) -> list[str]:
        try:
            action()
        except (OSError, StorageError) as error:
            return [str(error)]
        return []

    def _finish_folder(self, writing: _Writing, files: Mapping[str, FileRecord]) -> None:
        assert self.run_metadata is not None
        path = self.folder.finish(
            CheckpointState(
                train_state=writing.train_state,
                run_metadata=self.run_metadata,
                stream=writing.stream,
                files=files,
                losses=writing.losses,
            )
        )
        log.info("checkpoint: %s", path)
        self._pruning = threading.Thread(target=self._prune, name="prune")  # removing large files takes a while
        self._pruning.start()

    def _prune(self) -> None:
        try:
            self.folder.prune(**self.config.model_dump(include=RETENTION))
        except OSError as error:
            log.warning("old checkpoints could not be removed (%s)", error)

    def _tolerate(self, step: int, faults: list[str]) -> None:
        self._num_failed += 1
        message = f"the checkpoint after step {step} could not be written ({'; '.join(faults) or 'see the leader log'})"
        if self.bridge.is_leader:
            self.folder.drop(step)
            log.error("%s; the previous checkpoint stays valid", message)
        if self._num_failed > self.config.max_failed:
            raise StorageError(
                f"{message}; more than train.checkpoint.max_failed={self.config.max_failed} failed: free space, then"
                " run the same command again"
            )


def _means(losses: Sequence[Mapping[Task, float]]) -> dict[Task, float]:
    """Mean of each task's finite losses."""
    by_task: dict[Task, list[float]] = {}
    for task, loss in (item for each in losses for item in each.items() if math.isfinite(item[1])):
        by_task.setdefault(task, []).append(loss)
    return {task: statistics.fmean(values) for task, values in by_task.items()}
