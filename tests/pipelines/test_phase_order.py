"""Which phases train: those that nothing has started from yet, in the order that their checkpoints were written in."""

from types import SimpleNamespace

import pytest

from pipelines.training import _followed, _require_same_order, _warn_of_unnamed_phases
from tests.checkpoint.saved import STREAM, write_checkpoint
from ufork.checkpoint.folder import CheckpointFolder
from ufork.errors import ConfigError
from ufork.model.weights import WEIGHTS_NAME
from ufork.run_folder import RunFolder
from ufork.train.config import TrainConfig

NAMES = ("first", "second", "third")


@pytest.fixture
def phases(tmp_path):
    """Three phases, of which the first two have weights and a checkpoint."""
    run = RunFolder(tmp_path)
    phases = [
        SimpleNamespace(name=name, folder=run.phase(name), train=TrainConfig(), data_seed=STREAM.seed) for name in NAMES
    ]
    for phase in phases[:2]:
        phase.folder.weights.mkdir(parents=True)
        (phase.folder.weights / WEIGHTS_NAME).write_bytes(b"weights")
        checkpoints = CheckpointFolder(phase.folder.checkpoints)
        checkpoints.take()
        write_checkpoint(checkpoints, 10)
    return phases


def test_a_phase_that_another_has_started_from_is_not_trained_further(phases):
    assert _followed(phases) == {"first": "second"}
    assert _followed(phases[:1]) == {}, "asked for by --phase"


def test_a_phase_trains_if_it_or_what_follows_starts_over_or_its_weights_are_gone(phases):
    never = TrainConfig(resume="never")
    assert _followed([SimpleNamespace(**vars(phases[0]) | {"train": never}), *phases[1:]]) == {}
    assert _followed([phases[0], SimpleNamespace(**vars(phases[1]) | {"train": never}), phases[2]]) == {}
    (phases[0].folder.weights / WEIGHTS_NAME).unlink()
    assert _followed(phases) == {}


def test_phases_that_have_moved_are_refused_before_any_trains(phases):
    _require_same_order(phases)
    phases[1].data_seed += 1
    with pytest.raises(ConfigError, match=r"phases.second: run.seed plus the phase's number was 0 .*, is 1"):
        _require_same_order(phases)
    phases[1].train = TrainConfig(resume="never")
    _require_same_order(phases)


def test_folders_of_phases_without_a_name_in_the_recipe_are_said(phases, tmp_path, caplog):
    run = RunFolder(tmp_path)
    _warn_of_unnamed_phases(SimpleNamespace(run_folder=run, phases={"first": None, "second": None}))
    assert not caplog.messages
    _warn_of_unnamed_phases(SimpleNamespace(run_folder=run, phases={"first": None, "renamed": None}))
    assert f"{tmp_path} has phases that the recipe does not name: second;" in caplog.text


def test_a_damaged_checkpoint_is_left_to_the_resume(phases):
    newest = CheckpointFolder(phases[1].folder.checkpoints).at(10)
    (newest / "state.json").write_text("{")
    _require_same_order(phases)
