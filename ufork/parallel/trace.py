"""When a rank did what: spans of a step, kept in memory and written as a Chrome or Perfetto trace.

A rank without a trace has a `Tracer` too, that notes nothing.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """What a rank did from `start` to `end`, in seconds of the machine's clock."""

    kind: str
    """forward, backward, send, receive, gather, reduce or step."""
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


def chrome_trace(spans_by_rank: dict[int, list[Span]], names: dict[int, str]) -> dict[str, Any]:
    """The trace-event format that chrome://tracing and Perfetto read; a row per rank, times in microseconds."""
    begin = min((span.start for spans in spans_by_rank.values() for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for rank, spans in spans_by_rank.items():
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": names[rank]}})
        for span in spans:
            event = {"ph": "X", "name": span.name, "cat": span.kind, "pid": rank, "tid": 0}
            events.append({**event, "ts": (span.start - begin) * 1e6, "dur": (span.end - span.start) * 1e6})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
