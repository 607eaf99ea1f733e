"""What a machine has is read from files as Linux writes them; its rates are measured."""

import os

import pytest

from pipelines.demo.machine import Machine, _busy_ticks, cpu_name, probe_machine, usable_cores


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


def test_the_cpu_is_named_with_the_flags_that_matter(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n\nmodel name\t: Other\nflags\t: fpu\n")
    assert cpu_name(path) == "Some CPU avx2 avx512f"
    assert cpu_name(tmp_path / "missing") == "CPU"


def test_idle_time_and_waiting_for_disks_are_not_work():
    assert _busy_ticks(["cpu  10 20 30 4000 5000 1 2 3 7 7"]) == 66
    assert _busy_ticks([]) == 0


def test_the_description_names_other_load_only_where_there_is_some():
    machine = Machine(cpu="X", cores=4, fp32_gflops=100, bf16_gflops=20, memory_gb=8, disk_gb=50)
    assert "busy" not in machine.describe() and machine.gflops == 100
    assert "1.5 of them busy" in machine.model_copy(update={"busy_cores": 1.5}).describe()


@pytest.mark.slow
def test_this_machine_is_measured(tmp_path):
    machine = probe_machine(tmp_path / "not/made/yet")
    assert machine.cores == usable_cores() and machine.fp32_gflops > 0.1 and machine.bf16_gflops > 0.01
    assert machine.memory_gb > 0 and machine.disk_gb > 0 and 0 <= machine.busy_cores
