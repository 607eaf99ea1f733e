"""When a rank did what: spans of one step, noted in memory only while a tracer is on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """What a rank did from `start` to `end`, in seconds of the machine's clock."""

    kind: str
    """A pass of a micro-batch (forward, backward), a wait for a transfer (send, receive), a collective of the stage
    (gather) or the job (reduce), or the optimizer's step."""
    name: str
    start: float
    end: float


class Tracer:
    """Notes spans while it is `on`."""

    def __init__(self) -> None:
        self.on = False
        self.spans: list[Span] = []

    @contextmanager
    def span(self, kind: str, name: str = "") -> Iterator[None]:
        """Notes how long the block took."""
        if not self.on:
            yield
            return
        start = time.time()
        try:
            yield
        finally:
            self.spans.append(Span(kind, name or kind, start, time.time()))
