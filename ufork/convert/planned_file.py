"""Writes a safetensors file one tensor at a time, so that it may be larger than memory.

plan: name -> size, and a function that makes the tensor -> header -> each tensor made, checked, written and freed
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ufork.convert.tensor_folder import DTYPES, TensorFolder, TensorSize
from ufork.errors import NonFiniteError
from ufork.files import whole_file
from ufork.tensor_file import is_finite

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that does not exist yet."""

    size: TensorSize
    make: Callable[[], Tensor]
    """Returns the tensor; called once, when it is written."""


Plan = Mapping[str, PlannedTensor]
"""Tensors of a file by name."""


def copy_of(tensors: TensorFolder, name: str, shape: tuple[int, ...] | None = None) -> PlannedTensor:
    """Plans a copy of a tensor in a folder, in another `shape` of as many elements if one is given."""
    size = tensors.sizes[name]
    shape = size.shape if shape is None else shape
    return PlannedTensor(TensorSize(shape, size.dtype), lambda: tensors.read(name).view(shape))


def write_planned(path: Path, plan: Plan) -> int:
    """Writes the tensors of `plan`, whole or not at all, and returns the size of the file in bytes.

    Raises:
        NonFiniteError: a tensor holds NaN or infinity; nothing is written.
        StorageError: the file cannot be written.
        UforkError: as the functions of `plan` do.
    """
    # Wide types first, so that every tensor lies at a multiple of its type's size: torch maps no others.
    names = sorted(plan, key=lambda name: (-plan[name].size.dtype.itemsize, name))
    header, num_bytes = file_header({name: plan[name].size for name in names})
    with whole_file(path, durable=True) as file:
        file.write(header)
        for name in names:
            file.write(_bytes_of(plan[name], f"{path}: {name}"))
    return len(header) + num_bytes


def file_header(sizes: Mapping[str, TensorSize]) -> tuple[bytes, int]:
    """Returns the start of a file whose tensors come in the order of `sizes`, and the bytes of all tensors."""
    entries, end = {}, 0
    for name, size in sizes.items():
        start, end = end, end + size.num_bytes
        entries[name] = {"dtype": _NAMES[size.dtype], "shape": size.shape, "data_offsets": (start, end)}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text, end


def _bytes_of(planned: PlannedTensor, origin: str) -> memoryview:
    tensor = planned.make()
    assert TensorSize.of(tensor) == planned.size, origin
    if not is_finite(tensor):
        raise NonFiniteError(f"{origin} holds NaN or infinite values, so nothing is written; download it again")
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
