"""A traced step of the whole job: a Chrome or Perfetto trace, a picture, and the bubble of each stage.

spans of every rank -> trace.json, pipeline.png (`pipeline_picture.py`), bubble.json
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ufork.files import whole_file, write_whole
from ufork.parallel.layout import Layout
from ufork.parallel.tracing.pipeline_picture import draw_pipeline
from ufork.parallel.tracing.trace import Span

TRACE_FILE, PICTURE_FILE, BUBBLE_FILE = "trace.json", "pipeline.png", "bubble.json"
PASSES = ("forward", "backward")
WAITS = ("receive", "gather")
"""Spans inside a pass in which the rank waits."""


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """Spans of one step by rank, each by the clock of its machine."""

    layout: Layout
    spans: Mapping[int, Sequence[Span]]

    @classmethod
    def from_json(cls, layout: Layout, values: Sequence[Sequence[Mapping[str, Any]]]) -> "StepTrace":
        """Joins what `as_json` returned on each rank with work, in their order."""
        spans = [[Span(**value) for value in rank] for rank in values]
        return cls(layout=layout, spans=dict(zip(layout.present_ranks, spans, strict=True)))

    @property
    def begin(self) -> float:
        """Time at which the first rank began its first pass."""
        return min(span.start for spans in self.spans.values() for span in spans if span.kind in PASSES)

    @property
    def end(self) -> float:
        """Time at which the last rank ended its last pass."""
        return max(span.end for spans in self.spans.values() for span in spans if span.kind in PASSES)

    def bubble(self) -> dict[str, float]:
        """Returns, by stage, the share of the time in which its ranks run no pass or wait inside one."""
        shares = {}
        for stage in self.layout.shapes:
            ranks = self.layout.ranks_of(stage)
            busy = sum(self._seconds(rank, PASSES) - self._seconds(rank, WAITS) for rank in ranks)
            shares[str(stage)] = 1 - busy / len(ranks) / (self.end - self.begin)
        return shares

    def chrome(self) -> dict[str, Any]:
        """Returns the trace-event format of chrome://tracing and Perfetto: a row per rank, times in microseconds."""
        first = min(span.start for spans in self.spans.values() for span in spans)
        events: list[dict[str, Any]] = []
        for rank, spans in self.spans.items():
            events.append(_event(rank, ph="M", name="process_name", args={"name": str(self.layout.coordinates[rank])}))
            for span in spans:
                times = {"ts": (span.start - first) * 1e6, "dur": (span.end - span.start) * 1e6}
                events.append(_event(rank, ph="X", name=span.name, cat=span.kind, tid=0, **times))
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def save(self, folder: Path) -> None:
        """Writes the three files into `folder`.

        Raises:
            StorageError: it cannot be written.
        """
        write_whole(folder / TRACE_FILE, json.dumps(self.chrome()))
        write_whole(folder / BUBBLE_FILE, json.dumps(self.bubble(), indent=1))
        lanes = {str(self.layout.coordinates[rank]): spans for rank, spans in self.spans.items()}
        with whole_file(folder / PICTURE_FILE) as file:
            draw_pipeline(lanes, begin=self.begin, end=self.end).save(file, "PNG")

    def _seconds(self, rank: int, kinds: Sequence[str]) -> float:
        return sum(span.end - span.start for span in self.spans[rank] if span.kind in kinds)


def as_json(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Returns spans in the form in which ranks send them."""
    return [asdict(span) for span in spans]


def _event(rank: int, **values: Any) -> dict[str, Any]:
    return {"pid": rank, **values}
