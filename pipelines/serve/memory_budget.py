"""Memory that many requests share: each takes what it receives, and gives all of it back at its end."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ufork.errors import QueueFullError


class MemoryBudget:
    """Bytes that may be held at a time; any thread may use it."""

    def __init__(self, num_bytes: int) -> None:
        self._left, self._lock = num_bytes, threading.Lock()

    @contextmanager
    def hold(self) -> Iterator["Hold"]:
        """Yields what takes bytes until the block ends."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self._change(hold.num_bytes)

    def _change(self, num_bytes: int) -> None:
        with self._lock:
            if self._left + num_bytes < 0:
                raise QueueFullError("the requests that are being received fill the server's memory; try again later")
            self._left += num_bytes


class Hold:
    """What one request has taken."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget, self.num_bytes = budget, 0

    def take(self, num_bytes: int) -> None:
        """Takes bytes.

        Raises:
            QueueFullError: there are not as many.
        """
        self._budget._change(-num_bytes)
        self.num_bytes += num_bytes
