"""Submissions: copies in the run's folder, and calls of Slurm, whose commands are stand-ins that record them."""

import json
import subprocess
import sys

import pytest

from pipelines import cli
from pipelines.recipe import read_recipe
from tests.tiny_run import make_run

SBATCH = """#!/bin/sh
echo "sbatch $*" >>{folder}/asked
number=$(/usr/bin/wc -l <{folder}/asked)
[ "$number" -le {most} ] || {{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}
echo $((40 + number))
"""
NOTES = """#!/bin/sh
echo "${{0##*/}} $*" >>{folder}/asked
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    def takes(most):
        for name, text in (("sbatch", SBATCH), ("scancel", NOTES), ("scontrol", NOTES)):
            program = tmp_path / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text.format(folder=tmp_path, most=most))
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))
        return lambda: (tmp_path / "asked").read_text().splitlines()

    return takes


@pytest.fixture
def made(tmp_path):
    return make_run(tmp_path, "run")


def submit(recipe, *arguments):
    return cli.main(["submit", str(recipe), "--nodes", "1", "--ranks-per-node", "1", *arguments])


def test_code_and_resolved_recipe_are_kept_and_run(made, slurm, tmp_path):
    slurm(most=9)
    recipe, run = made
    assert submit(recipe, "train.steps=7") == submit(recipe) == 0
    first = run.path / "submissions" / "001"
    assert (run.path / "submissions" / "002").is_dir()
    assert read_recipe(first / "recipe.yaml") == read_recipe(recipe, ["train.steps=7"])
    program = "import pipelines.recipe, ufork, data_prep; print(pipelines.recipe.__file__)"
    environment = {"PYTHONPATH": str(first / "code"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd="/", capture_output=True, text=True)
    assert done.stdout.strip() == str(first / "code" / "pipelines" / "recipe.py"), done.stderr


def test_each_job_of_a_chain_waits_for_the_one_before_and_is_recorded(made, slurm, capsys):
    asked = slurm(most=9)
    recipe, run = made
    assert submit(recipe, "--chain", "align,all") == 0
    kept = run.path / "submissions" / "001"
    assert asked() == [
        f"sbatch --parsable --hold {kept}/align.sbatch",
        f"sbatch --parsable --hold --dependency afterok:41 --kill-on-invalid-dep=yes {kept}/all.sbatch",
        "scontrol release 41,42",
    ]
    events = [json.loads(line) for line in (run.path / "slurm" / "jobs.jsonl").read_text().splitlines()]
    assert [(each["event"], each["job"], each["phase"]) for each in events] == [
        ("submitted", 41, "align"),
        ("submitted", 42, "all"),
    ]
    assert "scancel 41 42" in capsys.readouterr().out


def test_a_chain_that_slurm_refuses_halfway_is_cancelled(made, slurm, capsys):
    asked = slurm(most=1)
    assert submit(made[0], "--chain", "align,all") == 1
    assert asked()[-1] == "scancel 41"
    assert "QOSMaxSubmitJobPerUserLimit" in capsys.readouterr().err
