"""Reports of training: JSON lines always, a progress bar or plain lines, and wandb's own files."""

import errno
import io
import json
import logging
import math
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ufork.checkpoint.state import TrainState
from ufork.errors import StorageError
from ufork.report.metrics import read_metrics
from ufork.run_folder import PhaseFolder
from ufork.train.config import TrainConfig, WandbConfig
from ufork.train.step import StepResult
from ufork.train.telemetry import MAX_FAILED_WRITES, Telemetry
from ufork.vocabulary import Task


def result(loss=2.0, norm=1.0):
    losses = {Task.UNDERSTANDING: loss, Task.GENERATION: loss + 1}
    return StepResult(losses=losses, gradient_norm=norm, num_real_tokens=90, num_padding_tokens=10, suspect_samples={})


def telemetry(folder, *, mode="disabled", is_leader=True, start=None, **changes):
    config = TrainConfig(**{"steps": 5, "log_every_steps": 2, "wandb": WandbConfig(mode=mode)} | changes)
    return Telemetry(
        config, PhaseFolder(folder), phase="both", run_config={"seed": 1}, is_leader=is_leader, start=start
    )


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_means_are_written_at_every_interval_and_at_the_last_step(tmp_path, caplog):
    reports = telemetry(tmp_path / "phase")
    with caplog.at_level(logging.INFO):
        for step in range(5):
            reports.record(step, result(loss=float(step), norm=math.inf if step == 3 else 1.0), 0.1)
        reports.close()
    lines = lines_of(tmp_path / "phase")
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert [line["loss/understanding"] for line in lines] == [0.5, 2.5, 4.0]
    assert [line["loss/generation"] for line in lines] == [1.5, 3.5, 5.0]
    assert [line["skipped_steps"] for line in lines] == [0, 1, 0]
    for line in lines:
        assert (line["phase"], line["learning_rate"], line["padding_share"]) == ("both", 0.1, 0.1)
        assert line["tokens_per_s"] > 0 and line["memory_mb"] > 0 and line["seconds"] > 0
    assert [record.message.split("  ")[0] for record in caplog.records] == ["both 2/5", "both 4/5", "both 5/5"]
    assert "understanding 0.5000 generation 1.5000" in caplog.text


def test_a_line_is_on_disk_before_the_next_step(tmp_path):
    reports = telemetry(tmp_path, log_every_steps=1)
    reports.record(0, result(), 0.1)
    assert len(lines_of(tmp_path)) == 1
    reports.close()


def test_a_resumed_phase_keeps_the_reports_before_its_start(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    reports = telemetry(tmp_path, log_every_steps=1)
    for step in range(4):
        reports.record(step, result(), 0.1)
    reports.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss')  # killed while writing
    again = telemetry(tmp_path, log_every_steps=1, start=TrainState(step=3))
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3], "even if it is killed before its first step"
    assert "removed the reports up to step 4, since training starts after step 3" in caplog.text
    again.record(3, result(), 0.1)
    again.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4]


def test_a_resumed_phase_keeps_the_measurements_before_its_start(tmp_path):
    reports = telemetry(tmp_path)
    for step in (2, 4):
        reports.add_measurement(step, "conflict", {"cosine/all": step / 10})
    reports.close()
    again = telemetry(tmp_path, start=TrainState(step=3))
    again.add_measurement(4, "conflict", {"cosine/all": 0.9})
    again.close()
    entries = read_metrics(PhaseFolder(tmp_path).probe("conflict")).entries
    assert [(entry["step"], entry["cosine/all"]) for entry in entries] == [(2, 0.2), (4, 0.9)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_no_lines(tmp_path, monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    reports = telemetry(tmp_path)
    with caplog.at_level(logging.INFO):
        for step in range(5):
            reports.record(step, result(), 0.1)
        reports.close()
    assert "5/5" in terminal.getvalue() and "loss/understanding=2.000" in terminal.getvalue()
    assert not caplog.records
    assert len(lines_of(tmp_path)) == 3


def test_only_the_leader_writes(tmp_path):
    reports = telemetry(tmp_path / "phase", is_leader=False)
    reports.record(0, result(), 0.1)
    reports.close()
    assert not (tmp_path / "phase").exists()


def test_drawings_are_saved_under_their_step(tmp_path):
    grid = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    reports = telemetry(tmp_path)
    reports.show(200, grid)
    reports.close()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "drawings" / "step-000200.png")), grid)


@pytest.mark.slow
def test_wandb_offline_keeps_figures_and_drawings_in_the_folder(tmp_path):
    reports = telemetry(tmp_path, mode="offline")
    for step in range(5):
        reports.record(step, result(), 0.1)
    reports.show(5, np.zeros((4, 4, 3), np.uint8))
    reports.close()
    (figures,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20  # wandb's own process writes them, a moment after its finish() has returned
    while not (found := _wandb_has(figures)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found


def _wandb_has(figures):
    drawings = list(figures.parent.glob("files/media/images/drawings_*.png"))
    return b"loss/understanding" in figures.read_bytes() and len(drawings) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file.*run\.folder"):
        telemetry(tmp_path / "file" / "phase")


@pytest.mark.parametrize("damage", [b"", b"\0\xff\n", b'not json\n{"step": 1, "kept": 1}\n\n[]\n'])
def test_damaged_metrics_do_not_stop_a_resume(tmp_path, damage, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(damage)
    reports = telemetry(tmp_path, log_every_steps=1, start=TrainState(step=3))
    reports.record(3, result(), 0.1)
    reports.close()
    assert [line["step"] for line in lines_of(tmp_path)] == ([1, 4] if b"kept" in damage else [4])
    assert ("damaged" in caplog.text) == bool(damage)
    kept = tmp_path / "metrics.jsonl.damaged"
    assert (kept.read_bytes() if kept.exists() else b"") == damage


def test_a_full_disk_loses_reports_and_not_the_run(tmp_path, monkeypatch, caplog):
    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    reports = telemetry(tmp_path, log_every_steps=1, steps=99)
    with monkeypatch.context() as full:
        full.setattr("ufork.train.telemetry.open", refuse, raising=False)
        full.setattr("ufork.files.open", refuse, raising=False)
        reports.record(0, result(), 0.1)
        reports.show(1, np.zeros((4, 4, 3), np.uint8))
    assert "metrics.jsonl: cannot be written (No space left on device)" in caplog.text
    assert "step-000001.png: cannot be written (No space left on device)" in caplog.text
    reports.record(1, result(), 0.1)
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl").entries] == [2]
    monkeypatch.setattr("ufork.train.telemetry.open", refuse, raising=False)
    with pytest.raises(StorageError, match="No space left"):
        for step in range(2, 2 + MAX_FAILED_WRITES):
            reports.record(step, result(), 0.1)


def test_a_measurement_without_temporary_files_is_lost_and_not_the_run(tmp_path, caplog):
    reports = telemetry(tmp_path)
    for _ in range(MAX_FAILED_WRITES):
        with reports.tolerated():
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert "No usable temporary directory" in caplog.text and "20 of at most 20 times" in caplog.text
    with pytest.raises(OSError, match="temporary"), reports.tolerated():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")


def test_wandb_never_ends_training(tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")

    def refuse(**options):
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(wandb, "init", refuse)
    reports = telemetry(tmp_path, mode="offline", log_every_steps=1)
    reports.record(0, result(), 0.1)
    reports.show(1, np.zeros((4, 4, 3), np.uint8))
    reports.close()
    assert "wandb failed, nothing more is reported to it" in caplog.text and "uid not found" in caplog.text
    assert len(lines_of(tmp_path)) == 1
