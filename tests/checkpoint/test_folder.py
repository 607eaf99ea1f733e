"""The folder of checkpoints: what is damaged is found and passed over, and only its holder finishes one."""

import json
import shutil

import pytest

from pipelines import cli
from ufork.checkpoint.folder import (
    STATE_FILE,
    CheckpointFolder,
    CheckpointState,
    TrainState,
    record_of,
    require_unchanged,
    verify,
)
from ufork.data.stream_state import StreamState
from ufork.errors import CheckpointError, StorageError
from ufork.vocabulary import Task

FILES = {"trunk/dp0-tp0.safetensors": b"weights of the trunk", "generation/dp0-tp0.safetensors": b"of the branch"}
STREAM = StreamState(seed=0, num_lanes=1, step=0, first_sequence={}, sources={}, taken={})


def state_after(step: int, records, losses=None) -> CheckpointState:
    return CheckpointState(
        losses=losses or {},
        position=TrainState(step=step),
        fixed={"train.optimizer": "adamw", "model": {"hidden_size": 32}},
        layout="colocated, tp 1",
        stream=STREAM,
        versions={},
        files=records,
    )


def write_checkpoint(folder: CheckpointFolder, step: int, losses=None):
    unfinished = folder.unfinished(step)
    for name, content in FILES.items():
        (unfinished / name).parent.mkdir(parents=True)
        (unfinished / name).write_bytes(content + str(step).encode())
    return folder.finish(state_after(step, {name: record_of(unfinished / name) for name in FILES}, losses))


@pytest.fixture
def folder(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.take()
    for step in (10, 20, 30):
        write_checkpoint(folder, step)
    return folder


def truncate(path):
    shards = path / "trunk/dp0-tp0.safetensors"
    shards.write_bytes(shards.read_bytes()[:-1])


def flip_a_bit(path):
    shards = path / "trunk/dp0-tp0.safetensors"
    content = bytearray(shards.read_bytes())
    content[3] ^= 1
    shards.write_bytes(content)


DAMAGES = {
    "cut short": (truncate, "trunk/dp0-tp0.safetensors: 21 bytes, state.json says 22"),
    "a flipped bit": (flip_a_bit, "trunk/dp0-tp0.safetensors: its checksum"),
    "a missing file": (lambda path: (path / "trunk/dp0-tp0.safetensors").unlink(), "cannot be read"),
    "a missing folder": (lambda path: shutil.rmtree(path / "generation"), "generation/dp0.* cannot be read"),
    "no state": (lambda path: (path / STATE_FILE).unlink(), "not finished"),
    "half a state": (lambda path: (path / STATE_FILE).write_text('{"version": 3, "posi'), "damaged"),
    "no mapping": (lambda path: (path / STATE_FILE).write_text("[1]"), "damaged"),
    "an unknown key": (lambda path: (path / STATE_FILE).write_text('{"version": 3, "color": 2}'), "damaged.*color"),
    "another version": (lambda path: (path / STATE_FILE).write_text('{"version": 99}'), "version 99, expected 3"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_is_told_and_the_one_before_is_taken(folder, name):
    damage, said = DAMAGES[name]
    damage(folder.at(30))
    with pytest.raises(CheckpointError, match=f"(?s)step-00000030.*{said}"):
        verify(folder.at(30), deep=True)
    found = folder.newest_valid()
    assert found.path == folder.at(20)
    assert list(found.passed_over) == [30] and "step-00000030" in found.passed_over[30]


def test_an_unfinished_one_is_none(folder):
    unfinished = folder.unfinished(40)
    (unfinished / "trunk").mkdir(parents=True)
    assert folder.newest_valid().path == folder.at(30)
    CheckpointFolder(folder.path).take()
    assert not unfinished.exists(), "the next job clears it away"


def test_a_job_that_another_has_replaced_finishes_none(folder):
    newer = CheckpointFolder(folder.path)
    newer.take()
    with pytest.raises(CheckpointError, match=r"start 2 of this run, this is start 1\) has taken over"):
        write_checkpoint(folder, 40)
    assert folder.steps() == [10, 20, 30]
    write_checkpoint(newer, 40)
    assert newer.newest_valid().path == newer.at(40)


def test_a_damaged_one_does_not_outlive_valid_ones(folder):
    truncate(folder.at(30))
    assert folder.set_aside(30).is_dir()
    write_checkpoint(folder, 25)
    folder.prune(keep=1)
    assert folder.newest_valid().path == folder.at(25)
    write_checkpoint(folder, 30)
    assert folder.newest_valid().path == folder.at(30)


def test_pruning_by_hand_never_leaves_only_a_damaged_one(tmp_path):
    folder = CheckpointFolder(tmp_path / "stages" / "joint" / "checkpoints")
    folder.take()
    for step in (10, 20):
        write_checkpoint(folder, step)
    truncate(folder.at(20))
    assert cli.main(["checkpoint", "prune", str(tmp_path), "--keep", "1"]) == 0
    assert folder.newest_valid().path == folder.at(10)


@pytest.mark.parametrize(
    ("keep", "every", "left"), [(1, 0, [30]), (2, 0, [20, 30]), (9, 0, [10, 20, 30]), (1, 10, [10, 20, 30]), (0, 0, [])]
)
def test_old_ones_leave(folder, keep, every, left):
    assert sorted(folder.prune(keep=keep, keep_every_steps=every) + left) == [10, 20, 30]
    assert folder.steps() == left
    assert not list(folder.path.glob("*.unfinished"))


def test_the_best_by_a_task_stay(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.take()
    for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0), (40, 1.5), (50, 4.0)):
        write_checkpoint(folder, step, {Task.GENERATION: loss, Task.UNDERSTANDING: -loss})
    assert folder.prune(keep=1, keep_best=2, best_by=Task.GENERATION) == [10, 30]
    assert folder.prune(keep=1, keep_best=1, best_by=Task.UNDERSTANDING) == [20, 40], "the newest is the best one too"


def test_what_may_not_change_is_named(folder):
    state = verify(folder.at(30), deep=True)
    require_unchanged(state, {"train.optimizer": "adamw", "model": {"hidden_size": 32}}, origin=folder.path)
    with pytest.raises(CheckpointError, match="train.optimizer was adamw, is sgd.*train.resume=never"):
        require_unchanged(state, {"train.optimizer": "sgd", "model": {"hidden_size": 32}}, origin=folder.path)


def test_what_is_fixed_is_compared_as_it_was_written(folder):
    fixed = {"train.optimizer": "adamw", "model": {"hidden_size": 32}}
    assert json.loads((folder.at(30) / STATE_FILE).read_text())["fixed"] == fixed
    state = verify(folder.at(30), deep=False).model_copy(update={"fixed": {"train.trainable": ["trunk"]}})
    require_unchanged(state, {"train.trainable": ("trunk",)}, origin=folder.path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/checkpoints"):
        CheckpointFolder(tmp_path / "file" / "checkpoints").take()
