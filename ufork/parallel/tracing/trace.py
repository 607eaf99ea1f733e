"""Spans of what a rank did in a step, recorded in memory while a tracer is on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """One thing that a rank did from `start` to `end`, in seconds of the machine's clock."""

    kind: str
    """A pass of a micro-batch (forward, backward), a wait for a transfer (send, receive), a collective of the stage
    (gather) or the job (reduce), or the optimizer's step."""
    name: str
    start: float
    end: float


class Tracer:
    """Records spans while it is `on`."""

    def __init__(self) -> None:
        self.on = False
        self.spans: list[Span] = []

    @contextmanager
    def span(self, kind: str, name: str = "") -> Iterator[None]:
        """Records the duration of the block."""
        if not self.on:
            yield
            return
        start = time.time()
        try:
            yield
        finally:
            self.spans.append(Span(kind, name or kind, start, time.time()))
