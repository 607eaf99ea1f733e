"""Limits of cgroups are read from files as Linux writes them."""

import math
import os

import pytest

from pipelines.cgroups import memory_limit, usable_cores


@pytest.fixture
def own_cgroup(tmp_path):
    path = tmp_path / "self"
    path.write_text("1:cpu:/ignored\n0::/user/session\n")
    return path


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_quota_all_cores_of_the_affinity_are_usable(tmp_path, own_cgroup, many_cores):
    write(tmp_path / "cpu.max", "max 100000\n")
    assert usable_cores(own_cgroup, tmp_path) == 16
    assert usable_cores(tmp_path / "missing", tmp_path / "missing") == 16


@pytest.mark.parametrize("folder", ["", "user", "user/session"])
def test_the_smallest_quota_of_the_groups_around_a_process_counts(tmp_path, own_cgroup, many_cores, folder):
    write(tmp_path / "user/cpu.max", "1000000 100000\n")
    write(tmp_path / folder / "cpu.max", "250000 100000\n")
    assert usable_cores(own_cgroup, tmp_path) == 3


def test_a_quota_of_version_1_counts_and_a_missing_one_does_not(tmp_path, own_cgroup, many_cores):
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "cpu/cpu.cfs_quota_us", "-1\n")
    assert usable_cores(own_cgroup, tmp_path) == 16
    write(tmp_path / "cpu/cpu.cfs_quota_us", "50000\n")
    assert usable_cores(own_cgroup, tmp_path) == 1


def test_the_smallest_memory_limit_counts_in_either_version(tmp_path, own_cgroup):
    write(own_cgroup, "5:memory:/slurm/job_7\n0::/user/session\n")
    write(tmp_path / "memory.max", "max\n")
    write(tmp_path / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_limit(own_cgroup, tmp_path) == 9223372036854771712
    write(tmp_path / "memory/slurm/job_7/memory.limit_in_bytes", "3000\n")
    assert memory_limit(own_cgroup, tmp_path) == 3000
    write(tmp_path / "user/memory.max", "2000\n")
    assert memory_limit(own_cgroup, tmp_path) == 2000
    assert memory_limit(tmp_path / "missing", tmp_path / "missing") == math.inf
