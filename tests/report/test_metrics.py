"""Reading metrics: every whole line is kept, and damaged ones between them are skipped."""

import os

import pytest

from ufork.report import metrics
from ufork.report.metrics import Metrics, read_metrics

GOOD = b'{"step": 1, "seconds": 0.5}\n{"step": 2, "seconds": NaN}\n'
DAMAGED_LINES = [
    b"\n",
    b"not json\n",
    b'{"step": 1, "sec{"step": 2}\n',
    b"\0\xff\xfe\n",
    b"[1]\n",
    b'{"seconds": 1}\n',
    b'{"step": true}\n',
    b'{"step": -1}\n',
    b'{"step": "2"}\n',
    b"[" * 100_000 + b"\n",
]


@pytest.mark.parametrize("line", DAMAGED_LINES, ids=range(len(DAMAGED_LINES)))
def test_a_damaged_line_is_skipped_and_counted(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + line + GOOD)
    found = read_metrics(path)
    assert [entry["step"] for entry in found.entries] == [1, 2, 1, 2]
    assert found.fault == f"{path}: 1 lines are damaged and were skipped"


def test_the_last_line_may_still_be_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + b'{"step": 3, "sec')
    found = read_metrics(path)
    assert [entry["step"] for entry in found.entries] == [1, 2] and not found.fault


def test_a_missing_file_has_no_entries(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == Metrics()


def test_a_file_that_is_not_regular_is_a_fault(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert read_metrics(path) == Metrics(fault=f"{path}: cannot be read (not a regular file); skipped")


def test_more_lines_than_memory_holds_are_a_fault_except_for_the_run_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_LINES", 1)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD)
    assert read_metrics(path) == Metrics(fault=f"{path}: cannot be read (2 lines, more than 1); skipped")
    assert len(read_metrics(path, limited=False).entries) == 2
