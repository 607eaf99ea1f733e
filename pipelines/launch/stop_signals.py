"""Signals that ask a job to stop: recorded on arrival, acted on after the step, when a checkpoint can be saved.

Slurm sends SIGTERM before it kills a job, and the signal that `sbatch --signal` names some time earlier. A
terminal that is closed sends SIGHUP.
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
"""Time within which a signal counts once: one sent to all processes reaches a rank again through its parent."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self._received: dict[int, float] = {}

    def __call__(self) -> bool:
        """Whether a signal was received."""
        return bool(self._received)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Records a signal; the same one again, after SAME_REQUEST_SECONDS, ends the process."""
        now = time.monotonic()
        if number not in self._received:
            log.warning("%s: stopping after this step; send it again to stop at once", signal.Signals(number).name)
            self._received[number] = now
        elif now - self._received[number] > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Calls `handler` for stop signals inside the block; does nothing outside a process's main thread.

    A SIGHUP that is ignored stays so: `nohup` lets programs go on without their terminal.
    """
    if threading.current_thread() is not threading.main_thread():  # signal.signal is allowed in no other
        yield
        return
    is_detached = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in STOP_SIGNALS if not (is_detached and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
