"""`ufork train` that is stopped, or killed, and run again leaves what an undisturbed run leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.kill import kill_until_done, losses
from pipelines import cli
from tests.tiny_run import make_run, train
from ufork.infer.model import DRAW_FILE

OVERRIDES = (
    "phases.align.train.steps=2",
    "phases.all.train.steps=30",
    "phases.all.train.checkpoint.every_steps=4",
)
RESUME_ME = 75


def start(recipe, *more):
    command = [sys.executable, "-m", "pipelines.cli", "train", str(recipe), "--ranks", "2", *OVERRIDES, *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_step(run, step):
    metrics = run.phase("all").metrics
    deadline = time.monotonic() + 120
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert time.monotonic() < deadline, f"no step {step}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    recipe, run = make_run(tmp_path_factory.mktemp("undisturbed"), "run")
    train(recipe, "--ranks", "2", *OVERRIDES)
    return load_file(run.phase("all").weights / "model.safetensors")


def assert_equal(weights, others):
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in others)


def assert_as_undisturbed(run, undisturbed):
    assert_equal(load_file(run.phase("all").weights / "model.safetensors"), undisturbed)
    lines = run.phase("all").metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 31))


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_all_ranks_stop_at_one_step_save_and_exit_with_the_resume_code(number, tmp_path, undisturbed):
    """The signal goes to every process, loaders included, as schedulers send it; sequences are made ahead by different
    numbers of processes before and after."""
    recipe, run = make_run(tmp_path, "run")
    process = start(recipe, "data.num_workers=2")
    wait_for_step(run, 9)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == RESUME_ME, said
    assert "stopped by a signal after step" in said and "Traceback" not in said
    said = train(recipe, "--ranks", "2", *OVERRIDES, "data.num_workers=1")
    assert f"resumed: {run.phase('all').checkpoints}" in said
    assert_as_undisturbed(run, undisturbed)


@pytest.mark.slow
def test_a_kill_loses_only_the_steps_since_the_last_checkpoint(tmp_path, undisturbed):
    recipe, run = make_run(tmp_path, "run")
    process = start(recipe)
    wait_for_step(run, 10)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    said = train(recipe, "--ranks", "2", *OVERRIDES)
    assert f"resumed: {run.phase('all').checkpoints}" in said
    assert_as_undisturbed(run, undisturbed)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_unless_asked_to(tmp_path):
    recipe, run = make_run(tmp_path, "run")
    train(recipe, *OVERRIDES)
    again = train(recipe, *OVERRIDES)
    assert f"resumed: {run.phase('all').checkpoints / 'step-00000030'}, after step 30\n" in again
    assert "all 30/30" not in again, "no step is taken"
    assert "train.resume=never" in train(recipe, *OVERRIDES, "train.resume=never")
    changed = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "train", str(recipe), *OVERRIDES, "model.intermediate_size=64"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert changed.returncode == 1
    message = "cannot resume: model.intermediate_size was 48 in the checkpoint, is 64 in the recipe"
    assert message in changed.stderr and "train.resume=never" in changed.stderr and "Traceback" not in changed.stderr


@pytest.mark.slow
def test_checkpoints_are_listed_exported_reshaped_begun_from_verified_and_pruned(tmp_path, capsys):
    recipe, run = make_run(tmp_path, "run")
    train(recipe, *OVERRIDES)
    newest, older = (run.phase("all").checkpoints / f"step-{step:08d}" for step in (30, 28))
    assert cli.main(["checkpoint", "list", str(run.path)]) == 0
    assert f"{newest}  " in capsys.readouterr().out
    exported = tmp_path / "exported"
    assert cli.main(["checkpoint", "export", str(newest), "--output", str(exported)]) == 0
    assert_equal(load_file(exported / "model.safetensors"), load_file(run.phase("all").weights / "model.safetensors"))
    assert (exported / DRAW_FILE).read_text() == (run.phase("all").weights / DRAW_FILE).read_text()
    reshaped = tmp_path / "reshaped"
    assert cli.main(["checkpoint", "reshape", str(older), "--ranks", "3", "--output", str(reshaped)]) == 0
    other, other_run = make_run(tmp_path, "other")
    said = train(other, *OVERRIDES, f"phases.all.train.resume={reshaped}")
    assert f"resumed: {reshaped}, after step 28" in said
    other_weights = load_file(other_run.phase("all").weights / "model.safetensors")
    assert_equal(other_weights, load_file(run.phase("all").weights / "model.safetensors"))
    (shards,) = older.glob("*/*.safetensors")
    shards.write_bytes(shards.read_bytes()[:-1])
    assert cli.main(["checkpoint", "verify", str(run.path)]) == 1
    shown = capsys.readouterr().out
    assert f"{newest}  valid" in shown and f"{older}  damaged: {shards}" in shown
    assert cli.main(["checkpoint", "prune", str(run.path)]) == 0
    assert newest.exists() and not older.exists()
    assert cli.main(["checkpoint", "list", str(tmp_path)]) == 1
    assert "give the folder of a run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_ends_as_an_undisturbed_one(tmp_path):
    """Four ranks of the forked layout; every other kill is while a checkpoint is written (`benchmarks.kill`)."""
    recipe, undisturbed = make_run(tmp_path, "undisturbed")
    killed = make_run(tmp_path, "killed")[1]
    forked = (
        "layout.kind=forked",
        "layout.trunk.tp=2",
        "model.num_key_value_heads=4",
        "model.tie_word_embeddings=false",
    )
    train(recipe, *OVERRIDES, *forked)
    command = ["train", str(recipe), *OVERRIDES, *forked, "run.name=killed"]
    figures = kill_until_done(command, killed.phase("all"), tmp_path / "log", kills=4, seed=0)
    assert figures["kills"] == 4 and figures["resumes"] >= 3 and figures["corrupt_taken"] == 0
    assert losses(killed.phase("all")) == losses(undisturbed.phase("all"))
    weights, others = (load_file(run.phase("all").weights / "model.safetensors") for run in (killed, undisturbed))
    assert_equal(weights, others)
