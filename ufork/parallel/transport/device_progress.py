"""Waits for a device with a time-out, and names what it waits for.

launched transfers, marks between the passes -> the host is about to read from the device -> mark by mark until all are
passed, or PeerError

A transfer whose peer is lost keeps the device busy for ever, and CUDA calls that wait for the device have no time-out.
So the host polls events. The time-out starts anew at every mark: it limits how long a pass makes no progress, as on
CPUs, and not how long a step takes.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from ufork.errors import PeerError
from ufork.parallel.layout import MeshCoordinate
from ufork.parallel.transport.data_plane import DeviceEvent, error_of
from ufork.parallel.transport.lost_peer import lost_peer

POLL_SECONDS = 0.0005


class DeviceProgress:
    """What one rank has launched on its device and not yet seen done."""

    def __init__(
        self,
        record_event: Callable[[], DeviceEvent],
        groups: Callable[[], Sequence[Any]],
        who: MeshCoordinate,
        timeout: timedelta,
    ):
        """`groups` returns those whose errors end a wait early; `timeout` is the longest wait for one mark."""
        self._record_event, self._groups, self._who, self._timeout = record_event, groups, who, timeout
        self._transfers: deque[tuple[Any, str]] = deque()
        self._marks: deque[tuple[DeviceEvent, str]] = deque()

    def add(self, work: Any, waits_for: str) -> None:
        """Adds a transfer, in the order of launches; `waits_for` names it and the other rank."""
        self._drop_completed()
        self._transfers.append((work, waits_for))

    def mark(self, doing: str = "") -> None:
        """Marks the end of what has been launched; `doing` names it.

        Raises:
            PeerError: a group has found that a rank is gone.
        """
        while self._marks and self._marks[0][0].query():
            self._marks.popleft()
        self._marks.append((self._record_event(), doing))
        self._raise_errors("the other ranks", doing)

    def wait(self, waits_for: str) -> None:
        """Waits until the device has done everything; `waits_for` names it where no transfer is unfinished.

        Raises:
            PeerError: a mark was not passed in time, or a group has found that a rank is gone.
        """
        self.mark()
        while self._marks:
            event, doing = self._marks[0]
            deadline = time.monotonic() + self._timeout.total_seconds()
            while not event.query():
                self._raise_errors(waits_for, doing)
                if time.monotonic() > deadline:
                    raise self._lost(waits_for, doing, f"no answer for {self._timeout.total_seconds():g} s")
                time.sleep(POLL_SECONDS)
            self._marks.popleft()
        self._drop_completed()

    def _drop_completed(self) -> None:
        """Lets go of transfers that are done, and thereby of their tensors."""
        while self._transfers and self._transfers[0][0].is_completed():
            self._transfers.popleft()

    def _raise_errors(self, waits_for: str, doing: str) -> None:
        for group in self._groups():
            if error := error_of(group):
                raise self._lost(waits_for, doing, error)

    def _lost(self, waits_for: str, doing: str, cause: str) -> PeerError:
        unfinished = (what for work, what in self._transfers if not work.is_completed())
        during = f"; during {self._who}: {doing}" if doing else ""
        return lost_peer(self._who, next(unfinished, waits_for), cause + during)
