"""The banner of a training log: a few lines that start no program, with problems as warnings."""

import logging

import torch  # noqa: F401  a rank has imported it

from pipelines.doctor import banner, machine, surroundings


def test_a_few_lines_without_starting_a_program(caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings, "ask", None)
    with caplog.at_level(logging.INFO):
        banner.log_banner(tmp_path, has_gpu=False)
    assert len(caplog.messages) == 1 + len(banner.QUICK_CHECKS)
    assert caplog.messages[0].startswith("machine: ") and "torch" in caplog.text
    assert "failed" not in caplog.text


def test_a_problem_is_a_warning_with_its_remedy(caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "LOW_SHARED_GB", 1e9)
    banner.log_banner(tmp_path, has_gpu=False)
    (problem,) = [record for record in caplog.records if "/dev/shm" in record.message]
    assert problem.levelno == logging.WARNING and "--ipc=host" in problem.message
