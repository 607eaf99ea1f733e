"""What a machine has is read from files as Linux writes them; its rates are measured."""

import pytest

from pipelines.cgroups import usable_cores
from pipelines.demo.machine import Machine, _busy_ticks, cpu_name, probe_machine


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
