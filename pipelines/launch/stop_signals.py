"""Signals that ask a job to stop: noted, and acted on between two steps, when everything can be saved.

Slurm sends SIGTERM before it ends a job, and whichever signal `sbatch --signal` names some time earlier.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ufork.processes.child import STOP_SIGNALS

log = logging.getLogger(__name__)


SAME_REQUEST_SECONDS = 2.0
"""Within which a signal counts once: one that is sent to all processes reaches a rank a second time by its starter."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self._received: dict[int, float] = {}

    def __call__(self) -> bool:
        """Whether it was."""
        return bool(self._received)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Notes it; the same signal once more, some time later, ends the process."""
        now = time.monotonic()
        if number not in self._received:
            log.warning("%s: stops after this step; once more ends it at once", signal.Signals(number).name)
            self._received[number] = now
        elif now - self._received[number] > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has `handler` called for them inside the block; only a process's main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
