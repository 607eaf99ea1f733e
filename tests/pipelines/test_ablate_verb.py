"""`ufork ablate` on a grid of two arms and two seeds: killed half-way and resumed, it gives the same table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.ablation.suite import read_suite
from pipelines.launch.verb_process import cpu_seconds_of_session
from tests.pipelines.ablation.tiny_suite import prepared_suite_file

VALUES = ("train.steps=60", "train.checkpoint.every_steps=5")


def start(path, *arguments):
    command = [sys.executable, "-m", "pipelines.cli", "ablate", str(path), *VALUES, "--parallel", "2", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(ready, what):
    deadline = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_grid_that_is_killed_half_way_and_resumed_gives_the_table_of_an_undisturbed_one(tmp_path, capsys):
    (tmp_path / "undisturbed").mkdir()
    undisturbed = prepared_suite_file(tmp_path / "undisturbed")
    _, errors = (process := start(undisturbed)).communicate(timeout=240)
    assert process.returncode == 0, errors

    (tmp_path / "killed").mkdir()
    path = prepared_suite_file(tmp_path / "killed")
    suite = read_suite(path, VALUES)
    half_way = suite.trials[2].recipe.run_folder.phase("joint").metrics
    process = start(path)
    wait_for(lambda: half_way.exists() and '"step": 12,' in half_way.read_text(), "step of the third trial")
    verbs = children_of(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(map(cpu_seconds_of_session, verbs)), "end of the verbs of a killed suite")
    done = {file.name: file.stat().st_mtime_ns for file in suite.results.glob("*.json")}
    assert {"shared-seed0.json"} <= done.keys() and "y-seed0.json" not in done

    shown, errors = (process := start(path)).communicate(timeout=240)
    assert process.returncode == 0, errors
    assert f"tiny: {len(done)} of 4 results exist" in shown and "shared-seed0: train" not in shown
    assert "resumed: " in (half_way.parents[2] / "logs/train.log").read_text()
    assert all((suite.results / name).stat().st_mtime_ns == written for name, written in done.items())
    table = (suite.results / "table.md").read_text()
    assert table == (read_suite(undisturbed, VALUES).results / "table.md").read_text()
    assert table in shown and "4 of 4 results" in table

    capsys.readouterr()
    assert cli.main(["ablate", str(path), *VALUES, "--table"]) == 0
    assert table in capsys.readouterr().out
    assert cli.main(["ablate", str(path), VALUES[0], "train.checkpoint.every_steps=6", "--table"]) == 2
    assert "every_steps was 5, is 6" in capsys.readouterr().err
    stored = json.loads((suite.results / "y-seed1.json").read_text())
    assert stored["steps"] == 60 and set(stored["curves"]) == {"understanding", "generation"}


def children_of(pid):
    files = Path(f"/proc/{pid}/task").glob("*/children")  # by the thread that started them
    return [int(child) for file in files for child in file.read_text().split()]
