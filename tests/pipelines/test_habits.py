"""What people do to a run between two starts either works exactly, or is refused by name before anything trains."""

import shutil
import subprocess
import sys

import pytest
import yaml

from tests.tiny_run import make_run, train
from ufork.data.text_tokenizer import TextTokenizer
from ufork.run_folder import RunFolder

OFTEN = ("train.checkpoint.every_steps=1", "train.checkpoint.keep=9")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two phases of 4 steps, with a checkpoint of each step."""
    recipe, run = make_run(tmp_path_factory.mktemp("finished"), "run")
    train(recipe, *OFTEN)
    return recipe, run


@pytest.fixture
def stopped(finished, tmp_path):
    """A copy of it, whose second phase has 3 steps left to do."""
    recipe = tmp_path / "copy.yaml"
    values = yaml.safe_load(finished[0].read_text())
    values["run"]["folder"] = str(tmp_path)
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished[1].path, run.path)
    for step in (2, 3, 4):
        shutil.rmtree(run.phase("all").checkpoints / f"step-{step:08d}")
    return recipe, run


def weights_of(run, phase="all"):
    return (run.phase(phase).weights / WEIGHTS).read_bytes()


def refused(recipe, *arguments):
    command = [sys.executable, "-m", "pipelines.cli", "train", str(recipe), *OFTEN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.slow
def test_deleted_checkpoints_are_trained_again_to_the_same_weights(finished, stopped):
    recipe, run = stopped
    said = train(recipe, *OFTEN)
    assert "phase align: not trained further, since all has started from its weights" in said
    assert "after step 1\n" in said and "removed the reports up to step 4" in said and "changed since" not in said
    assert weights_of(run) == weights_of(finished[1])
    shutil.rmtree(run.phase("all").checkpoints)
    shutil.rmtree(run.phase("align").weights)
    assert "since training starts after step 0" in train(recipe, *OFTEN)
    assert weights_of(run) == weights_of(finished[1]) and weights_of(run, "align") == weights_of(finished[1], "align")


@pytest.mark.slow
def test_a_run_that_was_moved_renamed_and_linked_resumes_exactly(finished, stopped, tmp_path):
    recipe, run = stopped
    (tmp_path / "elsewhere").mkdir()
    moved = RunFolder(run.path.rename(tmp_path / "elsewhere" / "other"))
    links = tmp_path / "links"
    links.symlink_to(tmp_path / "elsewhere")
    moved.phase("all").checkpoints.rename(tmp_path / "checkpoints")
    moved.phase("all").checkpoints.symlink_to(tmp_path / "checkpoints")
    train(recipe.rename(tmp_path / "renamed.yaml"), *OFTEN, f"run.folder={links}", "run.name=other")
    assert weights_of(moved) == weights_of(finished[1])


@pytest.mark.slow
def test_changed_values_are_said_once_a_start_and_finished_phases_stay(finished, stopped):
    recipe, run = stopped
    values = ("train.steps=6", "train.learning_rate=0.2", "phases.all.train.global_batch_size.generation=4")
    said = train(recipe, *OFTEN, *values)
    changes = (
        "changed since step 1: train.global_batch_size.generation was 2, is 4; train.learning_rate was 0.3, is 0.2;"
        " train.steps was 4, is 6\n"
    )
    assert said.count("changed since") == 1 and changes in said
    assert "changed since" not in train(recipe, *OFTEN, *values), "nothing has changed since its newest checkpoint"
    assert weights_of(run, "align") == weights_of(finished[1], "align")
    said = refused(recipe, *values, "phases.all.train.steps=5")
    assert "train.steps=5" in said and "was written after 6 steps" in said


@pytest.mark.slow
def test_other_weights_tokenizers_data_and_phases_are_refused(stopped):
    recipe, run = stopped
    assert "data.generation was" in refused(
        recipe, "data.generation=[{folder: codes/tiny/train}, {folder: codes/tiny/train}]"
    )
    assert "is of generation." in refused(recipe, "phases.all.train.global_batch_size.understanding=0")
    kept = weights_of(run, "align")
    (run.phase("align").weights / WEIGHTS).write_bytes(weights_of(run))
    assert "the weights that the phase starts from have changed" in refused(recipe)
    (run.phase("align").weights / WEIGHTS).write_bytes(kept)
    TextTokenizer.train(["other words"], vocab_size=300).save(run.text_tokenizer)
    assert "the text tokenizer has changed" in refused(recipe)
    values = yaml.safe_load(recipe.read_text())
    phases = values["phases"]
    for changed in ({"align": {}, "new": {}, "all": phases["all"]}, dict(reversed(phases.items()))):
        recipe.write_text(yaml.safe_dump(values | {"phases": changed}, sort_keys=False))
        assert "phases.all: run.seed plus the phase's number was 1" in refused(recipe)
