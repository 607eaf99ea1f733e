"""`ufork ablate --submit`: an array runs the trials, one that is stopped resumes, and a last job writes the tables."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.ablation.suite import read_suite
from tests.pipelines.ablation.tiny_suite import prepared_suite_file

ROOT = Path(__file__).parent.parent.parent
STEPS = "train.steps=300"


@pytest.mark.slow
def test_an_array_runs_the_trials_and_a_last_job_writes_the_tables(tmp_path, cluster, jobs_of):
    path = prepared_suite_file(tmp_path, parallel=2, seeds=[0])
    suite = read_suite(path, [STEPS])
    jobs = jobs_of(suite.folder)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "ablate", str(path), STEPS, "--submit"],
        env=cluster.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    array, table = (int(word) for word in done.stdout.splitlines()[0].split()[3:])
    metrics = suite.trials[0].recipe.run_folder.phase("joint").metrics
    jobs.wait("step of the first trial", lambda: metrics.exists() and '"step": 20,' in metrics.read_text())
    cluster.run("scancel", "--signal=USR1", f"{array}_0")
    jobs.wait_for_state(table, "COMPLETED")
    log = (suite.trials[0].recipe.run_folder.logs / "train.log").read_text()
    assert "stopped by a signal after step" in log and "resumed: " in log
    assert "2 of 2 results" in (suite.results / "table.md").read_text()
