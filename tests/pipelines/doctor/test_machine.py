"""Findings about small limits, a full or read-only disk, and a driver that does not answer."""

import os
import resource
import shutil
from types import SimpleNamespace

import pytest

from pipelines.doctor import machine as checks
from pipelines.doctor.finding import Mark


def disk(monkeypatch, gigabytes):
    usage = SimpleNamespace(free=gigabytes * checks.GB, total=gigabytes * checks.GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_small_shared_memory_is_a_problem_with_the_remedy_for_containers(machine, monkeypatch):
    disk(monkeypatch, 1 / 16)
    finding = checks.shared_memory(machine.around())
    assert finding.mark is Mark.PROBLEM and "64 MB" in finding.found and "--shm-size" in finding.remedy


@pytest.mark.parametrize(("gigabytes", "mark"), [(500, Mark.OK), (checks.LOW_DISK_GB - 1, Mark.PROBLEM)])
def test_a_run_folder_that_does_not_exist_yet_is_examined_by_its_parent(machine, monkeypatch, gigabytes, mark):
    disk(monkeypatch, gigabytes)
    finding = checks.run_folder(machine.around(folder=machine.folder / "runs" / "mine"))
    assert finding.mark is mark and not finding.breaks


def test_a_folder_that_cannot_be_written_breaks_the_run(machine, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert checks.run_folder(machine.around()).breaks


def test_a_low_limit_of_open_files_names_the_command_that_raises_it(machine, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 524_288))
    finding = checks.open_files(machine.around())
    assert finding.mark is Mark.PROBLEM and "ulimit -n 65536" in finding.remedy


def test_memory_is_the_limit_of_the_container_if_it_has_one(machine, monkeypatch):
    monkeypatch.setattr(checks, "memory_limit", lambda: 3 * checks.GB)
    assert "3 GB of memory" in checks.cores_and_memory(machine.around()).found
