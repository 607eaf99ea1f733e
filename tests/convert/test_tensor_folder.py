"""Reading folders of safetensors files: where tensors are, and every way that a folder can be wrong."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from ufork.convert.tensor_folder import INDEX_NAME, TensorFolder, TensorSize
from ufork.errors import CheckpointError

ONE, TWO = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, {"c": torch.tensor(7)}


@pytest.fixture
def sharded(tmp_path):
    names = {}
    for number, tensors in enumerate((ONE, TWO)):
        file = f"model-{number}.safetensors"
        save_file(tensors, tmp_path / file)
        names |= dict.fromkeys(tensors, file)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return tmp_path


def test_tensors_of_a_sharded_folder_are_read_by_name(sharded):
    folder = TensorFolder.open(sharded)
    assert folder.sizes == {name: TensorSize(tuple(t.shape), t.dtype) for name, t in (ONE | TWO).items()}
    for name, tensor in (ONE | TWO).items():
        assert torch.equal(folder.read(name), tensor), name


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_single_file_needs_no_index(tmp_path, given):
    save_file(ONE, tmp_path / "weights.safetensors")
    folder = TensorFolder.open(tmp_path if given == "folder" else tmp_path / "weights.safetensors")
    assert folder.sizes.keys() == ONE.keys()


def test_changing_a_tensor_changes_no_file(sharded):
    folder = TensorFolder.open(sharded)
    folder.read("a").zero_()
    assert torch.equal(folder.read("a"), ONE["a"])


def test_missing_shards_are_counted_and_named(sharded):
    (sharded / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of the 2 files.*model-1.safetensors"):
        TensorFolder.open(sharded)


@pytest.mark.parametrize("name", [INDEX_NAME, "model-1.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"weight_map": 3}', "half"])
def test_damaged_files_are_named(sharded, name, content):
    whole = (sharded / name).read_bytes()
    (sharded / name).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(CheckpointError, match=name):
        TensorFolder.open(sharded)


@pytest.mark.parametrize("name", ["../b.safetensors", "/b.safetensors", "x" * 300 + ".safetensors", "b.bin", "\0", 7])
def test_an_index_names_files_beside_it_only(sharded, name):
    """An index from elsewhere; found by the fuzz suite."""
    (sharded / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="which is no .safetensors file beside it"):
        TensorFolder.open(sharded)


def test_deep_nesting_and_a_pipe_are_damage(sharded, tmp_path):
    (sharded / INDEX_NAME).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        TensorFolder.open(sharded)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "model.safetensors")
    with pytest.raises(CheckpointError, match="no .safetensors file"):
        TensorFolder.open(tmp_path / "pipe")


def test_several_files_need_an_index(sharded):
    (sharded / INDEX_NAME).unlink()
    with pytest.raises(CheckpointError, match=f"2 .safetensors files and no {INDEX_NAME}"):
        TensorFolder.open(sharded)


def test_pickles_are_not_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pytorch_model.bin is a pickle"):
        TensorFolder.open(tmp_path)


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_weights_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=name):
        TensorFolder.open(tmp_path / name)


def test_a_file_that_is_removed_after_opening_is_named(sharded):
    folder = TensorFolder.open(sharded)
    (sharded / "model-0.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-0.safetensors"):
        folder.read("a")
