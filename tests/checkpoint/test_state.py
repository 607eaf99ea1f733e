"""Contents of `state.json`: damage is named, and nothing that it does not list is read."""

import errno
import logging
import os
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from tests.checkpoint.saved import FIXED, content_of, sign, truncate
from ufork.checkpoint import state as state_module
from ufork.checkpoint.resume import find_checkpoint
from ufork.checkpoint.state import (
    FIXED_CODEBOOK,
    FIXED_INITIAL_WEIGHTS,
    FIXED_TOKENS,
    STATE_FILE,
    RunMetadata,
    describe_changes,
    read_state,
    require_unchanged,
    verify,
)
from ufork.errors import CheckpointError, ConfigError, StorageError
from ufork.parallel.engine.state_files import StateFiles
from ufork.tensor_file import write_tensors


def flip_a_bit(path):
    shards = path / "trunk/dp0-tp0.safetensors"
    content = bytearray(shards.read_bytes())
    content[3] ^= 1
    shards.write_bytes(content)


def make_a_pipe(path):
    (path / STATE_FILE).unlink()
    os.mkfifo(path / STATE_FILE)


DAMAGES = {
    "cut short": (truncate, "trunk/dp0-tp0.safetensors: 21 bytes, expected 22 by state.json"),
    "a flipped bit": (flip_a_bit, "trunk/dp0-tp0.safetensors: damaged, its checksum"),
    "a missing file": (lambda path: (path / "trunk/dp0-tp0.safetensors").unlink(), "cannot be read"),
    "a missing folder": (lambda path: shutil.rmtree(path / "generation"), "generation/dp0.* cannot be read"),
    "no state": (lambda path: (path / STATE_FILE).unlink(), "not finished"),
    "half a state": (lambda path: (path / STATE_FILE).write_text('{"version": 3, "posi'), "damaged"),
    "a list": (lambda path: (path / STATE_FILE).write_text("[1]"), "damaged"),
    "deep nesting": (lambda path: (path / STATE_FILE).write_text("[" * 200_000), "damaged"),
    "a pipe": (make_a_pipe, "not a regular file"),
    "an unknown key": (lambda path: sign(path, {"version": 3, "color": 2}), "damaged.*color"),
    "another version": (lambda path: (path / STATE_FILE).write_text('{"version": 99}'), "version 99, expected 3"),
    "another step's state": (lambda path: sign(path, content_of(path.with_name("step-00000010"))), "after step 10"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_used(folder, name):
    damage, message = DAMAGES[name]
    damage(folder.at(30))
    with pytest.raises(CheckpointError, match=f"(?s)step-00000030.*{message}"):
        verify(folder.at(30), deep=True)
    found = folder.newest_valid()
    assert found.path == folder.at(20)
    assert list(found.damaged) == [30] and "step-00000030" in found.damaged[30]


def test_another_version_is_no_damage(folder):
    sign(folder.at(30), content_of(folder.at(30)) | {"version": 4})
    with pytest.raises(
        CheckpointError, match=r"step-00000030: version 4, expected 3; resume with the ufork that wrote"
    ):
        folder.newest_valid()


@pytest.mark.parametrize("name", [STATE_FILE, "trunk/dp0-tp0.safetensors"])
def test_a_disk_that_fails_makes_no_checkpoint_look_damaged(folder, monkeypatch, name):
    """Skipping what cannot be read now would set all of them aside and start training over."""

    def fail(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(state_module, "read_object" if name == STATE_FILE else "checksum_of", fail)
    with pytest.raises(
        StorageError, match=rf"step-00000030/{name}: cannot be read \(Stale file handle\); run the same"
    ):
        folder.newest_valid()


def test_every_digit_of_the_state_is_covered_by_its_checksum(folder):
    path = folder.at(30) / STATE_FILE
    text = path.read_text()
    for match in re.finditer(r"\d", text):
        changed = str((int(match[0]) + 1) % 10)
        path.write_text(text[: match.start()] + changed + text[match.end() :])
        with pytest.raises(CheckpointError, match=r"checksum|version|damaged"):
            read_state(folder.at(30))
    path.write_text(text.replace("\n", "").replace(": ", ":"))
    assert read_state(folder.at(30)).train_state.step == 30, "layout of the text does not matter"


OUT_OF_RANGE = {
    "a negative step": lambda content: content["train_state"].update(step=-1),
    "infinite seconds": lambda content: content["train_state"].update(seconds=float("inf")),
    "no lanes": lambda content: content["stream"].update(num_lanes=0),
    "a loss that is no number": lambda content: content.update(losses={"generation": float("nan")}),
    "a file outside the folder": lambda content: content["files"].update(
        {"../../weights/model.safetensors": {"bytes": 1, "checksum": "0" * 32}}
    ),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_values_out_of_range_are_refused(folder, name):
    content = content_of(folder.at(30))
    OUT_OF_RANGE[name](content)
    sign(folder.at(30), content)
    with pytest.raises(CheckpointError, match="step-00000030"):
        read_state(folder.at(30))


def test_a_file_that_is_not_listed_is_not_read(tmp_path):
    path = tmp_path / "trunk"
    path.mkdir()
    write_tensors(path / "dp7-tp0.safetensors", {"weight:a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="contains no checkpoint files"), StateFiles(tmp_path, []):
        pass


def test_a_changed_value_is_named_with_the_old_and_new_value(folder):
    state = verify(folder.at(30), deep=True)
    require_unchanged(state, FIXED, origin=folder.path)
    changed = {"train.optimizer": "sgd", "model": {"hidden_size": 64}}
    with pytest.raises(CheckpointError) as raised:
        require_unchanged(state, changed, origin=folder.path)
    assert str(raised.value) == (
        f"{folder.path}: cannot resume: model.hidden_size was 32 in the checkpoint, is 64 in the recipe;"
        " train.optimizer was adamw in the checkpoint, is sgd in the recipe. Restore what has changed, or start the"
        " phase over with phases.NAME.train.resume=never"
    )


def test_fixed_values_are_compared_as_json(folder):
    assert content_of(folder.at(30))["run_metadata"]["fixed"] == FIXED
    state = read_state(folder.at(30))
    metadata = state.run_metadata.model_copy(update={"fixed": {"train.trainable": ["trunk"]}})
    state = state.model_copy(update={"run_metadata": metadata})
    require_unchanged(state, {"train.trainable": ("trunk",)}, origin=folder.path)


def test_changed_contents_are_named_without_their_checksums(folder):
    state = read_state(folder.at(30))
    require_unchanged(state, {**FIXED, FIXED_TOKENS: "1", FIXED_CODEBOOK: "1"}, origin=folder.path)  # not recorded yet
    contents = dict.fromkeys((FIXED_INITIAL_WEIGHTS, FIXED_TOKENS, FIXED_CODEBOOK), "0")
    metadata = state.run_metadata.model_copy(update={"fixed": FIXED | contents})
    state = state.model_copy(update={"run_metadata": metadata})
    for name, message in (
        (FIXED_INITIAL_WEIGHTS, "the weights that the phase starts from have changed"),
        (FIXED_TOKENS, "the text tokenizer has changed"),
        (FIXED_CODEBOOK, "the image tokenizer has changed"),
    ):
        with pytest.raises(CheckpointError, match=f"cannot resume: {message}. Restore"):
            require_unchanged(state, FIXED | contents | {name: "1"}, origin=folder.path)


def metadata_with(settings, **changes):
    return RunMetadata(**{"fixed": FIXED, "layout": "colocated, tp 1", "versions": {}, "settings": settings} | changes)


def test_changes_are_named_with_both_values_as_far_as_they_are_recorded():
    before = metadata_with({"train": {"learning_rate": 0.1, "loss_weights": {"generation": 1.0}}})
    now = metadata_with(
        {"train": {"learning_rate": 0.2, "loss_weights": {"generation": 1.0}}}, layout="colocated, tp 2"
    )
    assert describe_changes(before, before) == []
    assert describe_changes(before, now) == [
        "layout was colocated, tp 1, is colocated, tp 2",
        "train.learning_rate was 0.1, is 0.2",
    ]
    assert describe_changes(metadata_with({}, versions={"ufork": "1"}), metadata_with({"train": {}})) == [
        "version.ufork was 1, is None"
    ]


def found_by_one_rank(folder, metadata, steps):
    alone = SimpleNamespace(is_leader=True, gather=lambda value: [value])
    return find_checkpoint(folder, "auto", metadata, alone, steps=steps)


def test_changes_since_the_checkpoint_are_logged_in_one_line(folder, caplog):
    caplog.set_level(logging.INFO)
    assert found_by_one_rank(folder, metadata_with({}, layout="forked"), steps=30) == folder.at(30)
    assert caplog.messages == [
        f"resumed: {folder.at(30)}, after step 30",
        "changed since step 30: layout was colocated, tp 1, is forked",
    ]


def test_fewer_steps_than_are_done_are_refused(folder):
    with pytest.raises(ConfigError, match=r"train.steps=29: .*step-00000030 was written after 30 steps; set .*=30 or"):
        found_by_one_rank(folder, metadata_with({}), steps=29)
