"""The GPU check: its parts on the CPU, and what it makes of a part that hangs, crashes, raises or finds a fault."""

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.checkpoint import Stall
from benchmarks.gpu_check import plain_training
from benchmarks.gpu_check.__main__ import may_start, run_parts
from benchmarks.gpu_check.measuring import largest_error
from benchmarks.gpu_check.part_list import PARTS, Part, choose_parts
from benchmarks.gpu_check.part_process import DUMP_SECONDS, PartProcess, take_messages
from benchmarks.gpu_check.parts.checkpoint_stall import report_stall
from benchmarks.gpu_check.parts.device_tests import files_with_device_tests, report_outcome
from benchmarks.gpu_check.parts.environment import ask_nvidia_smi
from benchmarks.gpu_check.plain_training import Trained
from benchmarks.gpu_check.report import PartResult, Report
from benchmarks.gpu_check.results import Results
from pipelines.launch.ranks import PRELOADED_MODULES, process_context
from ufork.errors import ConfigError
from ufork.vocabulary import Task

ROOT = Path(__file__).parents[2]
NOT_NEEDED = ("wandb", "simplejpeg", "webdataset", "flash_attn", "liger_kernel", "apex", "triton", "pytest")

NVIDIA_SMI = """#!/bin/sh
case "$1" in
*compute-apps*) ;;
*driver_version*) echo 'NVIDIA H100 80GB HBM3, 81559, 580.0' ;;
*uuid*) echo 'GPU-1, 0, NVIDIA H100 80GB HBM3, 4, 0' ;;
*) echo '1980, 1980, 120.0, 700.0, Enabled, Disabled' ;;
esac
"""


@dataclass(frozen=True, kw_only=True)
class FaultyPart(Part):
    """A part of tests/benchmarks/faulty_parts."""

    limit_seconds: float = 60.0

    @property
    def module(self) -> str:
        return f"tests.benchmarks.faulty_parts.{self.name}"


def result_of(name: str, *, limit_seconds: float = 60) -> PartResult:
    context = process_context(("pytest", *PRELOADED_MODULES))
    part = FaultyPart(name=name)
    process = PartProcess(part, PartResult(), limit_seconds=limit_seconds, cpu=True, context=context)
    while not process.has_ended:
        take_messages([process])
    return process.result


def ends(pid: int) -> bool:
    """Whether a process is gone, or goes within a time that is long enough for a busy machine."""
    deadline = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_part_that_hangs_is_stopped_with_its_children_and_shows_its_stack():
    result_of("raises")  # starts the server of processes, which takes seconds
    result = result_of("hangs", limit_seconds=DUMP_SECONDS + 3)
    assert result.status == "failed" and result.error.startswith("stopped at its limit")
    assert "faulty_parts/hangs.py" in result.output and "in run" in result.output
    assert ends(result.figures["child"])


@pytest.mark.parametrize(("name", "number"), [("segfaults", signal.SIGSEGV), ("aborts", signal.SIGABRT)])
def test_part_that_crashes_is_reported_with_its_signal_and_what_it_had_found(name, number):
    result = result_of(name)
    assert result.status == "failed" and result.error == f"died by {number.name}"
    assert result.figures == {"before": 1}
    assert f"faulty_parts/{name}.py" in result.output


def test_part_that_raises_is_reported_with_its_traceback():
    result = result_of("raises")
    assert result.status == "failed" and "no kernel image is available" in result.error
    assert "faulty_parts/raises.py" in result.error
    assert result.figures == {"before": 1}


def test_part_goes_on_after_a_fault_and_fails_at_its_end():
    result = result_of("finds_a_fault")
    assert result.status == "failed" and result.error == "first: 2 is not 3"
    assert result.figures == {"after": 1} and result.skipped == {"flash": "not installed"}


def test_table_shows_faults_and_missed_goals_and_only_faults_fail(tmp_path):
    results = Results(path=tmp_path / "results.json", cpu=True)
    results.parts["finds_a_fault"] = result_of("finds_a_fault")
    assert not results.passed
    table = results.table()
    assert "finds_a_fault" in table and "first: 2 is not 3" in table
    assert "goal missed: speed" in table
    results.parts["finds_a_fault"].status = "passed"
    assert results.passed


@pytest.mark.slow
def test_results_so_far_survive_the_death_of_the_check(tmp_path):
    output = tmp_path / "results.json"
    program = (
        "from pathlib import Path\n"
        "from benchmarks.gpu_check.__main__ import run_parts\n"
        "from tests.benchmarks.test_gpu_check import FaultyPart\n"
        f"run_parts([FaultyPart(name='finds_a_fault'), FaultyPart(name='waits')], Path({str(output)!r}), cpu=True)\n"
    )
    check = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output.exists() and "process" in output.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    check.kill()
    check.wait()
    parts = json.loads(output.read_text())["parts"]
    assert parts["finds_a_fault"]["status"] == "failed"
    assert parts["waits"]["status"] == "running"
    assert ends(parts["waits"]["figures"]["process"])


def test_part_without_time_left_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu_check.__main__.CPU_TOTAL_SECONDS", 0)
    results = run_parts([FaultyPart(name="raises")], tmp_path / "results.json", cpu=True)
    assert results.parts["raises"].status == "failed" and "used up the time" in results.parts["raises"].error


def test_parts_run_at_the_same_time_unless_they_are_timed():
    timed, untimed = (FaultyPart(name="waits", is_timed=is_timed) for is_timed in (True, False))
    running = [SimpleNamespace(part=untimed)]
    assert may_start(untimed, running, most_together=2)
    assert not may_start(untimed, running, most_together=1)
    assert not may_start(timed, running, most_together=2)
    assert not may_start(untimed, [SimpleNamespace(part=timed)], most_together=2)
    assert may_start(timed, [], most_together=1)


def test_answers_of_nvidia_smi_are_reported_raw_and_as_read(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    result = PartResult()
    ask_nvidia_smi(Report(result.take, deadline=0.0), {"PATH": f"{tmp_path}:/bin:/usr/bin"}, num_gpus=1)
    assert not result.failed_checks
    assert result.figures["node health"]["names"] == ["NVIDIA H100 80GB HBM3"]
    assert result.figures["doctor"] == "1 x NVIDIA H100 80GB HBM3, 80 GB; driver 580.0"
    program.write_text("#!/bin/sh\nexit 9\n")
    ask_nvidia_smi(Report(result.take, deadline=0.0), {"PATH": f"{tmp_path}:/bin:/usr/bin"}, num_gpus=1)
    assert len(result.failed_checks) == 2


@pytest.mark.parametrize(
    ("printed", "passes"),
    [
        ("ERROR tests/test_jpeg.py - ModuleNotFoundError\n3 passed, 1 skipped, 1 error in 9.00s", True),
        ("FAILED tests/test_a.py::test_b\n1 failed, 3 passed in 9.00s", False),
        ("ERROR tests/test_a.py::test_b - RuntimeError\n3 passed, 1 error in 9.00s", False),
        ("ERROR tests/test_a.py\n1 error in 9.00s", False),
        ("Fatal Python error: Segmentation fault", False),
        ("", False),
    ],
)
def test_device_tests_fail_unless_some_passed_and_none_failed(printed, passes):
    result = PartResult()
    report_outcome(Report(result.take, deadline=0.0), printed, returncode=1)
    assert bool(result.failed_checks) != passes


def test_files_with_device_tests_are_those_that_pytest_would_find():
    files = {Path(file).relative_to(ROOT).as_posix() for file in files_with_device_tests()}
    assert {"tests/infer/test_steps.py", "tests/parallel/engine/test_zero.py"} <= files
    assert "tests/test_import_floors.py" not in files


def test_stall_of_a_save_shorter_than_the_noise_is_no_share():
    stall = Stall(blocking_seconds=0.08, step_seconds=0.1, saving_step_seconds=0.05, num_steps=12, spread_seconds=0.3)
    noise, measured = PartResult(), PartResult()
    report_stall(Report(noise.take, deadline=0.0), stall, 10**6, cpu=False)
    assert not noise.goals and "%" not in noise.headlines[0] and "stall" in noise.skipped
    report_stall(Report(measured.take, deadline=0.0), replace(stall, spread_seconds=0.01), 10**6, cpu=False)
    assert measured.goals and "%" in measured.headlines[0]


def test_a_training_with_one_loss_that_is_nan_differs():
    good = Trained(losses=[{Task.GENERATION: 1.0}] * 3, norms=[1.0] * 3, weights={})
    bad = replace(good, losses=[*good.losses[:2], {Task.GENERATION: float("nan")}])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plain_training, "_weight_difference", lambda *_: 0.0)
        for found, num_faults in ((good, 0), (bad, 1)):
            result = PartResult()
            plain_training.compare(Report(result.take, deadline=0.0), "sgd", found, good)
            assert len(result.failed_checks) == num_faults


def test_largest_error_shows_a_nan_behind_a_good_tensor():
    good, bad = torch.ones(2), torch.full((2,), torch.nan)
    assert math.isnan(largest_error([good, bad], [good, good]))


def test_unknown_part_is_refused_with_the_known_ones():
    assert [part.name for part in choose_parts("layouts,environment")] == ["environment", "layouts"]
    with pytest.raises(ConfigError, match="layout: unknown; expected some of environment"):
        choose_parts("layout")


@pytest.mark.slow
def test_parts_import_without_optional_packages():
    program = (
        "import importlib, os, sys\n"
        "os.environ['DS_ACCELERATOR'] = 'cpu'\n"
        f"sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))\n"
        f"for module in {[part.module for part in PARTS]!r}: importlib.import_module(module)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_all_parts_pass_on_the_cpu(tmp_path):
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--cpu", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, done.stdout + output.read_text()
    parts = json.loads(output.read_text())["parts"]
    assert parts.keys() == {part.name for part in PARTS}
    assert {name for name in parts if parts[name]["status"] == "skipped"} == {p.name for p in PARTS if p.needs_cuda}
