"""The head of a training log: a handful of lines, at once, problems among them."""

import logging
import time

import torch  # noqa: F401  a rank has imported it

from pipelines.doctor import banner, machine


def test_a_handful_of_lines_come_at_once(caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        began = time.monotonic()
        banner.log_head(tmp_path, has_gpu=False)
    assert time.monotonic() - began < 2
    assert len(caplog.messages) == 1 + len(banner.QUICK_CHECKS)
    assert caplog.messages[0].startswith("machine: ") and "torch" in caplog.text


def test_a_problem_is_a_warning_with_its_remedy(caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "LOW_SHARED_GB", 1e9)
    banner.log_head(tmp_path, has_gpu=False)
    (problem,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "/dev/shm" in problem.message and "--ipc=host" in problem.message
