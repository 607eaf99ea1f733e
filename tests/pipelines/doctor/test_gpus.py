"""Findings about GPUs; nvidia-smi is a script of the test, and no kernel runs."""

import pytest

from pipelines.doctor import gpus
from pipelines.doctor.finding import Mark
from pipelines.doctor.probes import kernels_probe

TOPOLOGY = """echo '\t\033[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\033[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-31
GPU1\tNV18\t X \tSYS\tPXB\t0-31
GPU2\tSYS\tSYS\t X \tSYS\t32-63
NIC0\tPIX\tPXB\tSYS\t X
Legend:
  X    = Self'"""


def test_no_driver_is_absent_not_a_problem(machine):
    assert gpus.gpus(machine.around()).mark is Mark.ABSENT


def test_gpus_of_a_kind_are_counted(machine):
    machine.program(
        "nvidia-smi", "echo NVIDIA H100 80GB HBM3, 81559, 550.54\necho NVIDIA H100 80GB HBM3, 81559, 550.54"
    )
    assert gpus.gpus(machine.around()).found == "2 x NVIDIA H100 80GB HBM3, 80 GB; driver 550.54"


def test_a_warning_of_nvidia_smi_is_shown_beside_the_gpus(machine):
    machine.program("nvidia-smi", "echo GB10, [N/A], 580.95\necho WARNING: infoROM is corrupted")
    finding = gpus.gpus(machine.around())
    assert finding.mark is Mark.PROBLEM
    assert finding.found == "1 x GB10; driver 580.95; nvidia-smi: WARNING: infoROM is corrupted"


@pytest.mark.parametrize(
    ("script", "reason"), [("echo No devices were found", "lists no GPU: No devices"), ("exit 9", "exit code 9")]
)
def test_a_driver_that_gives_no_list_is_a_problem(machine, script, reason):
    machine.program("nvidia-smi", script)
    finding = gpus.gpus(machine.around())
    assert finding.mark is Mark.PROBLEM and reason in finding.found


def test_a_driver_that_hangs_is_slow(machine):
    machine.program("nvidia-smi", "sleep 600")
    finding = gpus.gpus(machine.around(timeout_seconds=2))
    assert finding.mark is Mark.SLOW and "nvidia-smi timed out after 2 s" in finding.found


def test_links_are_counted_by_pairs_of_gpus(machine):
    machine.program("nvidia-smi", TOPOLOGY)
    finding = gpus.gpu_links(machine.around())
    assert finding.found == "2 pairs by SYS, 1 pairs by NV18 (PIX, PXB, PHB, NODE, SYS: no NVLink)"
    assert "layout.trunk.tp" in finding.instead
    machine.program("nvidia-smi", "echo 'GPU0\tCPU Affinity\nGPU0\t X \t0-31'")
    assert gpus.gpu_links(machine.around()).found == "one GPU, or none"


PROBED = {"failing": [], "capabilities": ["9.0", "9.0"], "precision": "bf16", "kernels": {"attention": "varlen"}}


@pytest.mark.parametrize(
    ("changes", "mark", "found", "instead"),
    [
        ({}, Mark.OK, "compute capability 9.0; attention: varlen", "trains in bf16"),
        ({"capabilities": ["7.5"], "precision": "fp32"}, Mark.OK, "compute capability 7.5", "only emulate bf16"),
        (
            {"failing": ["cuda:1: CUDA error: no kernel image"]},
            Mark.PROBLEM,
            "cuda:1: CUDA error",
            "ends with an error",
        ),
        ({"capabilities": []}, Mark.ABSENT, "torch can use no GPU", ""),
    ],
)
def test_kernels_are_those_that_training_would_choose(changes, mark, found, instead):
    finding = gpus.kernels_finding(PROBED | changes)
    assert finding.mark is mark and found in finding.found and instead in finding.instead


@pytest.mark.gpu
def test_the_probe_runs_a_kernel_on_each_gpu():
    finding = gpus.kernels_finding(kernels_probe())
    assert finding.mark is Mark.OK and "attention: " in finding.found
