"""The end of a phase: a trace that cannot be written, or that there is none of, does not end the run."""

from types import SimpleNamespace

from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import make_layout
from ufork.parallel.tracing.trace import Span
from ufork.train.loop import _save_trace
from ufork.vocabulary import Task

LAYOUT = make_layout(LayoutConfig(), num_ranks=1, global_batch_size={Task.GENERATION: 1})


def stage_with(*spans):
    bridge = SimpleNamespace(gather=lambda value: [value], is_leader=True)
    return SimpleNamespace(bridge=bridge, layout=LAYOUT, tracer=SimpleNamespace(spans=list(spans)))


FORWARD = Span("forward", "generation 0", 1.0, 2.0)


def test_a_trace_that_cannot_be_written_is_an_error_in_the_log(tmp_path, caplog):
    (tmp_path / "file").touch()
    _save_trace(stage_with(FORWARD), tmp_path / "file")
    assert "trace.json: cannot be written" in caplog.text and "training continues" in caplog.text


def test_a_phase_that_resumed_behind_the_traced_step_has_no_trace(tmp_path, caplog):
    _save_trace(stage_with(), tmp_path)
    assert caplog.messages == ["trace: none, since this start did not take step 3 of the phase"]
    assert list(tmp_path.iterdir()) == []


def test_a_traced_step_is_written(tmp_path):
    _save_trace(stage_with(FORWARD), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"trace.json", "bubble.json", "pipeline.png"}
