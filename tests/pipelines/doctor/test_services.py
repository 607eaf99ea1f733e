"""Compilers, Slurm and wandb: absent, not answering, and a key that is never shown."""

import pytest

from pipelines.doctor import services
from pipelines.doctor.finding import Mark
from pipelines.doctor.surroundings import Surroundings

KEY = "0123456789abcdef" * 2 + "01234567"


def test_a_missing_compiler_does_not_break_the_run(machine):
    finding = services.compilers(machine.around())
    assert (finding.mark, finding.found, finding.breaks) == (Mark.ABSENT, "no g++, ninja", False)


def test_compilers_are_listed_with_their_versions(machine):
    machine.program("g++", "echo 'g++ (Debian 12.2.0-14) 12.2.0'")
    machine.program("ninja", "echo 1.11.1")
    finding = services.compilers(machine.around())
    assert (finding.mark, finding.found) == (Mark.OK, "g++ 12.2.0, ninja 1.11.1")
    assert services.compilers(machine.around(has_gpu=True)).found.startswith("no nvcc")


@pytest.mark.parametrize(("built_for", "mark"), [("12.8", Mark.PROBLEM), ("13.1", Mark.OK), (None, Mark.OK)])
def test_a_toolkit_of_another_cuda_version_than_torchs_is_a_problem(machine, monkeypatch, built_for, mark):
    for name in ("g++", "ninja", "nvcc"):
        machine.program(name, "echo release 13.0, V13.0.88")
    monkeypatch.setattr(Surroundings, "ask_python", lambda around, probe: {"cuda": built_for})
    assert services.compilers(machine.around(has_gpu=True)).mark is mark


def test_slurm_is_absent_reached_down_or_silent(machine):
    assert services.slurm(machine.around()).mark is Mark.ABSENT
    machine.program("sbatch", "echo slurm-wlm 22.05.8")
    machine.program("scontrol", "echo 'Slurmctld(primary) at head is UP'")
    assert services.slurm(machine.around()).found == "slurm-wlm 22.05.8; Slurmctld(primary) at head is UP"
    machine.program("scontrol", "echo 'Slurmctld(primary) at head is DOWN' >&2; exit 1")
    assert services.slurm(machine.around()).mark is Mark.PROBLEM
    machine.program("scontrol", "sleep 600")
    silent = services.slurm(machine.around(timeout_seconds=2))
    assert silent.mark is Mark.SLOW and "timed out after 2 s" in silent.found


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_the_key_of_wandb_is_seen_and_never_shown(machine, where):
    around = machine.around()
    assert "without a key" in services.wandb(around).found
    if where == "environment":
        around = machine.around(environment={"WANDB_API_KEY": KEY})
    else:
        (machine.folder / ".netrc").write_text(f"machine {services.WANDB_HOST}\n  login user\n  password {KEY}\n")
    finding = services.wandb(around)
    assert "with a key" in finding.found and KEY not in str(finding)
