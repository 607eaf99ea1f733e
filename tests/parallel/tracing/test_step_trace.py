"""A traced step: its bubble, its trace events, its picture, and the report that shows it."""

import json

import numpy as np
import pytest
from PIL import Image

from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import make_layout
from ufork.parallel.tracing.pipeline_picture import LABEL_WIDTH, MARGIN, PASS_COLOURS, WIDTH
from ufork.parallel.tracing.step_trace import StepTrace, as_json
from ufork.parallel.tracing.trace import Span
from ufork.report.run_report import write_report
from ufork.vocabulary import Task

LAYOUT = make_layout(
    LayoutConfig(kind="forked"), num_ranks=3, global_batch_size={Task.UNDERSTANDING: 0, Task.GENERATION: 1}
)
"""Rank 0 is the trunk, rank 2 generation."""
TRUNK = [
    Span("reduce", "targets", 9.0, 10.0),
    Span("forward", "generation 0", 10.0, 12.0),
    Span("backward", "generation 0", 16.0, 20.0),
    Span("receive", "receive", 16.0, 17.0),
]
GENERATION = [Span("forward", "generation 0", 12.0, 14.0), Span("backward", "generation 0", 14.0, 17.0)]


@pytest.fixture
def trace():
    return StepTrace.from_json(LAYOUT, json.loads(json.dumps([as_json(TRUNK), as_json(GENERATION)])))


def test_the_bubble_is_the_time_without_a_pass_or_waiting_inside_one(trace):
    assert trace.bubble() == {"trunk": pytest.approx(1 - 5 / 10), "generation": pytest.approx(1 - 5 / 10)}


def test_events_keep_ranks_kinds_and_times_in_microseconds(trace):
    events = trace.chrome()["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == [
        "rank 0 (trunk, replica 0 of 1, tp rank 0 of 1)",
        "rank 2 (generation, replica 0 of 1, tp rank 0 of 1)",
    ]
    (forward,) = [event for event in events if event["pid"] == 2 and event.get("cat") == "forward"]
    assert (forward["ts"], forward["dur"]) == (3e6, 2e6)


def test_the_picture_has_a_lane_per_rank_with_its_passes_at_their_times(trace, tmp_path):
    trace.save(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "pipeline.png"))
    forward = (pixels == PASS_COLOURS["forward", Task.GENERATION]).all(-1)
    columns = np.flatnonzero(forward[: len(forward) // 2].any(0))
    share = (columns - LABEL_WIDTH) / (WIDTH - MARGIN - LABEL_WIDTH)
    assert 0 <= share[0] < 0.01 and 0.39 < share[share < 0.5].max() < 0.41, "2 s of 10 and, one lane below, 2 more"


def test_the_report_shows_the_trace(trace, tmp_path):
    stage = tmp_path / "phases" / "joint"
    stage.mkdir(parents=True)
    trace.save(stage)
    page = write_report(tmp_path).read_text()
    assert "A step of the pipeline" in page and "trunk 50%, generation 50%" in page
    assert page.count("data:image/png;base64,") == 1
