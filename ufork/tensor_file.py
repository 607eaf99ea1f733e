"""Weights in one safetensors file, written whole or not at all, and checked when they are read.

tensors by name -> write_tensors: all finite -> FILE.safetensors
FILE.safetensors, a model on the meta device -> read_tensors: names, shapes, types compared; all finite -> tensors
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ufork.errors import NonFiniteError
from ufork.files import draft_of, open_regular

WEIGHT_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""Types of weights by their names in safetensors files; smaller ones have scales that are stored elsewhere."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, durable: bool = False) -> None:
    """Writes a safetensors file of weights, whole or not at all.

    Raises:
        NonFiniteError: a weight is NaN or infinite; nothing is written.
        StorageError: it cannot be written.
    """
    for name, tensor in tensors.items():
        if num_broken := int((~tensor.isfinite()).sum()):
            raise NonFiniteError(
                f"{path}: not written, since {name} holds {num_broken} of {tensor.numel()} values that are NaN or"
                " infinite; lower the learning rate, and train again from an earlier checkpoint if there is one"
            )
    with draft_of(path, durable=durable) as draft:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, draft)
        except SafetensorError as error:  # how it reports an OSError
            raise OSError(str(error)) from None


def read_tensors(path: Path, expected: Mapping[str, Tensor], *, device: str = "cpu") -> dict[str, Tensor]:
    """Reads a safetensors file of weights.

    Args:
        path: the file.
        expected: tensors of the same names and shapes, perhaps on the meta device. They are compared with the file
            before any of it is read. Where they are floating-point numbers, the file may have others of WEIGHT_TYPES.
        device: where to put the tensors.

    Raises:
        OSError: as `open_regular`.
        ValueError: the file is damaged, holds other tensors, or some of its values are not finite.
    """
    check_header(path, expected)
    try:
        with safe_open(path, "pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if broken := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise ValueError(f"{len(broken)} tensor(s) hold NaN or infinite values, first {broken[0]!r}")
    return tensors


def check_header(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Compares names, shapes and types of a file's tensors with those of `expected`, as `read_tensors`; reads none.

    Raises:
        OSError: as `open_regular`.
        ValueError: the file is damaged, or holds other tensors.
    """
    os.close(open_regular(path))
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            if unmatched := sorted(names ^ expected.keys()):
                where = "only in the file" if unmatched[0] in names else "missing"
                raise ValueError(f"{len(unmatched)} tensor(s) do not match, first {unmatched[0]!r}, which is {where}")
            for name, tensor in expected.items():
                _require_like(file.get_slice(name), tensor, name)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _require_like(entry: Any, expected: Tensor, name: str) -> None:
    shape, dtype = entry.get_shape(), entry.get_dtype()
    types = WEIGHT_TYPES.keys() if expected.is_floating_point() else {"I64"}
    if shape != list(expected.shape):
        raise ValueError(f"{name} has shape {shape}, expected {list(expected.shape)}")
    if dtype not in types:
        raise ValueError(f"{name} has the type {dtype}, expected {' or '.join(types)}")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of real numbers holds finite ones only; needs no memory."""
    # NaN is both smallest and largest
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
