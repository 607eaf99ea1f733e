"""Spans of what a rank did in a step, recorded in memory.

block of a step -> marks of a Clock before and after -> end of the step: the clock reads them -> Span
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Span:
    """One thing that a rank did from `start` to `end`, in seconds of the machine's clock."""

    kind: str
    """A pass of a micro-batch (forward, backward), a wait for a transfer (send, receive), a collective of the stage
    (gather) or the job (reduce), or the optimizer's step."""
    name: str
    start: float
    end: float


class Clock(Protocol):
    """Tells when a rank reached points of its step."""

    def mark(self) -> Any:
        """Returns a mark of this point, without waiting for anything."""
        ...

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Returns the time of each mark in seconds of the machine's clock; may wait until all have been reached."""
        ...


class HostClock:
    """The clock of a rank whose passes have run when their calls return."""

    def mark(self) -> float:
        """Returns the time."""
        return time.time()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        """Returns the marks, which are times."""
        return list(marks)


class Tracer:
    """Records what happens inside `recording`.

    Attributes:
        spans: of the recorded steps.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        """`clock`: where the rank's passes run; the host's by default."""
        self.spans: list[Span] = []
        self._clock = clock or HostClock()
        self._marked: list[tuple[str, str, Any, Any]] | None = None

    @contextmanager
    def recording(self, *, on: bool = True) -> Iterator[None]:
        """Records the spans of the block, which is a step; the clock is read at its end."""
        if not on:
            yield
            return
        marked: list[tuple[str, str, Any, Any]] = []
        self._marked = marked
        try:
            yield
        finally:
            self._marked = None
        times = iter(self._clock.seconds([mark for _, _, start, end in marked for mark in (start, end)]))
        self.spans += [Span(kind, name, next(times), next(times)) for kind, name, _, _ in marked]

    @contextmanager
    def span(self, kind: str, name: str = "") -> Iterator[None]:
        """Records the duration of the block, if a step is recorded."""
        if self._marked is None:
            yield
            return
        marked, start = self._marked, self._clock.mark()
        try:
            yield
        finally:
            marked.append((kind, name or kind, start, self._clock.mark()))
