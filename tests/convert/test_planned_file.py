"""Files written one tensor at a time: readable by safetensors, whole or not at all."""

import weakref

import pytest
import torch
from safetensors.torch import load_file

from ufork.convert.planned_file import PlannedTensor, write_planned
from ufork.convert.tensor_folder import TensorSize
from ufork.errors import NonFiniteError, StorageError

TENSORS = {
    "a": torch.arange(3, dtype=torch.bfloat16),  # 6 bytes: what follows would not be aligned
    "b": torch.arange(6.0).view(3, 2).T,
    "c": torch.tensor(5),
    "d": torch.zeros(0, 4),
    "e": torch.tensor([True]),
}


def planned(tensors):
    return {name: PlannedTensor(TensorSize(tuple(t.shape), t.dtype), lambda t=t: t) for name, t in tensors.items()}


def test_safetensors_reads_what_is_written(tmp_path):
    path = tmp_path / "file.safetensors"
    assert write_planned(path, planned(TENSORS)) == path.stat().st_size
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_one_tensor_is_made_at_a_time(tmp_path):
    made = []

    def make():
        assert all(reference() is None for reference in made)
        tensor = torch.zeros(2)
        made.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    size = TensorSize((2,), torch.float32)
    write_planned(tmp_path / "file", {name: PlannedTensor(size, make) for name in "abc"})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_with_values_that_are_not_finite_is_not_written(tmp_path, value, dtype):
    broken = torch.zeros(100, dtype=dtype)
    broken[70] = value
    with pytest.raises(NonFiniteError, match="file: broken holds"):
        write_planned(tmp_path / "file", planned({**TENSORS, "broken": broken}))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(StorageError, match="absent"):
        write_planned(tmp_path / "absent" / "file", planned(TENSORS))
