"""Weights are written whole, and read only if names, shapes, types and values are those of weights."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from ufork.errors import NonFiniteError, StorageError
from ufork.tensor_file import read_tensors, write_tensors

WHOLE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(0)}
EXPECTED = {name: tensor.to("meta") for name, tensor in WHOLE.items()}


def test_tensors_are_written_whole(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(6).view(2, 3).T}, durable=True)
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a\.safetensors: cannot be written"):
        write_tensors(tmp_path / "file" / "a.safetensors", {"x": torch.ones(1)})


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_weights_that_are_not_finite_are_never_written(tmp_path, value):
    """Those of models, image tokenizers and detectors alike."""
    with pytest.raises(NonFiniteError, match=r"a\.safetensors: not written, since y holds 1 of 3 values"):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2), "y": torch.tensor([1, value, 0])})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_precision_are_read(tmp_path, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in WHOLE.items()}, tmp_path / "w.safetensors")
    found = read_tensors(tmp_path / "w.safetensors", EXPECTED)
    assert found["a"].dtype == dtype and found["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and not found["b"].numel()


WRONG = {
    "missing": ({"a": WHOLE["a"]}, r"1 tensor\(s\) do not match, first 'b', which is missing"),
    "unknown": ({**WHOLE, "c": torch.ones(1)}, "'c', which is only in the file"),
    "shape": ({**WHOLE, "a": torch.ones(3, 2)}, r"a has shape \[3, 2\], expected \[2, 3\]"),
    "int8": ({**WHOLE, "a": torch.ones(2, 3, dtype=torch.int8)}, "a has the type I8"),
    "complex": ({**WHOLE, "a": torch.ones(2, 3, dtype=torch.complex64)}, "a has the type C64"),
    "float8": ({**WHOLE, "a": torch.ones(2, 3).to(torch.float8_e5m2)}, "a has the type F8_E5M2"),
    "NaN": ({**WHOLE, "a": torch.tensor([[1, 2, 3], [4, torch.nan, 6]])}, "NaN or infinite values, first 'a'"),
    "infinite": ({**WHOLE, "a": torch.full((2, 3), -torch.inf).bfloat16()}, "NaN or infinite values, first 'a'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_weights_are_refused(tmp_path, name):
    tensors, message = WRONG[name]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "w.safetensors", EXPECTED)


def test_damage_and_pipes_are_errors(tmp_path):
    save_file(WHOLE, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    for damaged in (b"", data[:-1], (2**60).to_bytes(8, "little") + data[8:], data.replace(b'"F32"', b'"F99"', 1)):
        (tmp_path / "w.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match="."):
            read_tensors(tmp_path / "w.safetensors", EXPECTED)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_tensors(tmp_path / "pipe", EXPECTED)
