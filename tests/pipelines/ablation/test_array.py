"""A suite as jobs of Slurm, whose commands are stand-ins that record how they were called."""

import sys

import pytest

from pipelines import cli
from pipelines.ablation.suite import read_suite
from tests.pipelines.ablation.tiny_suite import prepared_suite_file, suite_file
from ufork.analysis.ablation.trial_result import TrialResult

SBATCH = """#!/bin/sh
echo "sbatch $* PYTHONPATH=$PYTHONPATH UFORK_PYTHON=$UFORK_PYTHON" >>{folder}/asked
number=$(/usr/bin/wc -l <{folder}/asked)
[ "$number" -le {most} ] || {{ echo "sbatch: error: no more" >&2; exit 1; }}
echo $((40 + number))
"""
SCANCEL = """#!/bin/sh
echo "scancel $*" >>{folder}/asked
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    def takes(most):
        (tmp_path / "bin").mkdir()
        for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
            program = tmp_path / "bin" / name
            program.write_text(text.format(folder=tmp_path, most=most))
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        return lambda: (tmp_path / "asked").read_text().splitlines()

    return takes


def test_data_then_an_array_of_the_missing_trials_then_tables(tmp_path, slurm, capsys):
    asked = slurm(most=9)
    path = suite_file(tmp_path)
    options = ["train.steps=3", "--submit", "--parallel", "2", "--sbatch", "partition=cpu"]
    assert cli.main(["ablate", str(path), *options]) == 0
    prepare, array, table = asked()
    kept = tmp_path / "runs/tiny/submissions/001"
    for line in (prepare, array, table):
        assert "--partition=cpu" in line and f"slurm/ablate.sbatch {kept}/suite.yaml train.steps=3" in line
        assert line.endswith(f"PYTHONPATH={kept}/code UFORK_PYTHON={sys.executable}")
    assert " --prepare " in prepare and "--dependency" not in prepare
    assert "--dependency=afterok:41" in array and "--array=0,1,2,3%2" in array
    assert "--dependency=afterany:42" in table and " --table " in table
    assert "jobs 41 42 43" in capsys.readouterr().out


def test_the_kept_suite_is_the_one_that_was_submitted(tmp_path, slurm):
    slurm(most=9)
    path = suite_file(tmp_path)
    assert cli.main(["ablate", str(path), "--submit"]) == 0
    before = read_suite(path).trials
    (tmp_path / "recipe.yaml").write_text("run: {name: other}\n")
    path.write_text("name: other\n")
    assert read_suite(tmp_path / "runs/tiny/submissions/001/suite.yaml").trials == before


def test_finished_data_and_trials_are_not_submitted(tmp_path, slurm, monkeypatch):
    asked = slurm(most=9)
    path = prepared_suite_file(tmp_path)
    suite = read_suite(path)
    recipe = suite.trials[1].recipe
    cost = {"total_parameters": 1, "active_parameters": {}, "training_flops": {}}
    TrialResult(
        suite="tiny",
        arm="shared",
        seed=1,
        values={},
        recipe=recipe.model_dump(mode="json"),
        cost=cost,
        steps=1,
        scores=[],
        curves={},
        seconds={},
        commit="",
        machine="",
        versions={},
    ).save(suite.results)
    assert cli.main(["ablate", str(path), "--submit"]) == 0
    array, _ = asked()
    assert "--array=0,2,3%1" in array and "--dependency" not in array


def test_jobs_are_cancelled_when_slurm_refuses_one(tmp_path, slurm, capsys):
    asked = slurm(most=1)
    assert cli.main(["ablate", str(suite_file(tmp_path)), "--submit"]) == 1
    assert asked()[-1] == "scancel 41" and "no more" in capsys.readouterr().err
