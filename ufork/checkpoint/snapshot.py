"""Copies of a rank's weights and optimizer state that a checkpoint is written from, made while training continues.

    begin: training thread, after an update           the shards are copied from here on
    before_update: training thread, after the passes  nothing overwrites them before they are copied
    complete: writing thread                          returns once the image is filled, and writes it

`HostSnapshot`, for shards in host memory: the writing thread copies, and the next update waits until it has (as
CheckFreq, FAST '21).

`StreamSnapshot`, for shards on a CUDA device: a stream of its own copies each flat group at once into page-locked
memory, after what training has launched before. The next update waits for these copies on the device, not on the host.
The writing thread polls an event with a time limit, since the device may wait for ever for a rank that is gone.
"""

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from ufork.checkpoint.cuda_streams import CudaStreams
from ufork.errors import StorageError
from ufork.parallel.engine.state_files import FileImage

log = logging.getLogger(__name__)

POLL_SECONDS = 0.01
"""Interval at which the writing thread polls; short compared with the writing that follows."""
LOWEST_PRIORITY = 19
"""Nice value of the writing thread (Linux has one per thread), so that it does not take a core from training."""


class Snapshot(Protocol):
    """One copy at a time; the next may begin when the image of the one before is no longer read."""

    def begin(self, image: FileImage) -> None:
        """Starts to copy the sources of `image`, as the updates so far left them, into its memory.

        Raises:
            RuntimeError: CUDA refuses to copy.
        """
        ...

    def before_update(self) -> None:
        """Makes the update that follows wait until the sources are copied."""
        ...

    def complete(self) -> None:
        """Waits until the image is filled, and lowers this thread's priority; called by the writing thread.

        Raises:
            StorageError: the device did not copy in time, or `close` was called.
        """
        ...

    def close(self) -> None:
        """Ends the use of the sources, whose memory may be freed afterwards."""
        ...


def snapshot_of(image: FileImage, *, timeout_seconds: float) -> Snapshot:
    """Returns the snapshot for the device that the sources of `image` are on.

    Args:
        image: of this rank's shards, which stay where they are for the phase.
        timeout_seconds: how long a device may take for what it was given before the copies, and for them.
    """
    on_device = [source.device for source in image.sources if source.device.type == "cuda"]
    return StreamSnapshot(CudaStreams(on_device[0]), timeout_seconds=timeout_seconds) if on_device else HostSnapshot()


class HostSnapshot:
    """Copies within host memory, in the writing thread."""

    def __init__(self) -> None:
        self._image: FileImage | None = None
        self._copied = threading.Event()
        self._copied.set()

    def begin(self, image: FileImage) -> None:
        """Leaves the copying to `complete`, which must follow."""
        self._image = image
        self._copied.clear()

    def before_update(self) -> None:
        """Waits until the writing thread has copied."""
        self._copied.wait()

    def complete(self) -> None:
        """Copies, at the lowest priority."""
        assert self._image is not None
        try:
            lower_priority()
            self._image.fill()
        finally:
            self._copied.set()

    def close(self) -> None:
        """Waits until the writing thread has copied: it reads memory that is freed next."""
        self._copied.wait()


class StreamSnapshot:
    """Copies from a CUDA device to page-locked host memory, on a stream of its own.

    The image's memory, as many bytes as the rank's weights and optimizer state, is locked at the first save and kept
    for the phase; locking takes a while and may stop the device. Where the system refuses it (limits of a container),
    the copies still are right, but each save holds up training for as long as they take.
    """

    def __init__(self, streams: CudaStreams, *, timeout_seconds: float) -> None:
        self._streams, self._timeout_seconds = streams, timeout_seconds
        self._copied: torch.cuda.Event | None = None
        self._locked: Tensor | None = None
        self._closed = threading.Event()

    def begin(self, image: FileImage) -> None:
        """Launches the copies behind all that this thread has launched."""
        self._copied = None
        self._lock(image.memory)
        self._streams.copying.wait_event(self._streams.training().record_event())
        self._streams.copy(image.targets, image.sources)
        self._copied = self._streams.copying.record_event()

    def before_update(self) -> None:
        """Makes the stream of training wait for the copies; the host continues."""
        if self._copied:
            self._streams.training().wait_event(self._copied)

    def complete(self) -> None:
        """Polls until the copies are done; only then lowers the priority, since CUDA's calls hold its locks.

        Raises:
            StorageError: they were not done in time, or `close` was called.
        """
        assert self._copied is not None
        self._streams.enter_thread()
        deadline = time.monotonic() + self._timeout_seconds
        while not self._copied.query():
            if self._closed.wait(POLL_SECONDS):
                raise StorageError("training ended before the device had copied the weights")
            if time.monotonic() > deadline:
                raise StorageError(
                    f"the device did not copy the weights within {self._timeout_seconds:.0f} s: it still runs what it"
                    " was given before, perhaps a collective of a rank that is gone"
                )
        lower_priority()

    def close(self) -> None:
        """Stops the writing thread's wait, and unlocks the memory unless the device may still write to it."""
        self._closed.set()
        with suppress(RuntimeError):  # of a device that has failed: its error is on the way already
            if self._copied is None or self._copied.query():
                self._unlock()

    def _lock(self, memory: Tensor) -> None:
        if self._locked is memory:
            return
        self._unlock()
        if reason := self._streams.lock_pages(memory):
            log.warning(
                "checkpoints: %.1f GB of host memory cannot be page-locked (%s); each save holds up training until the"
                " weights are copied",
                memory.nbytes / 1e9,
                reason,
            )
        self._locked = memory

    def _unlock(self) -> None:
        if self._locked is not None:
            self._streams.unlock_pages(self._locked)
            self._locked = None


def lower_priority() -> None:
    """Gives the calling thread the lowest priority; nothing outside Linux, where threads have no separate one."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
