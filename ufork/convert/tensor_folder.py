"""Folders of safetensors files, as Hugging Face's libraries write them, read one tensor at a time.

    model.safetensors.index.json, or a single *.safetensors file -> TensorFolder: sizes of all tensors, any of them

A tensor is a mapping of its file into memory. Its pages are read when they are used, and freed with the tensor, so a
whole folder is read in the memory of its largest tensor.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ufork.errors import CheckpointError
from ufork.files import open_regular, read_object
from ufork.tensor_file import WEIGHT_TYPES

INDEX_NAME = "model.safetensors.index.json"
SUFFIX = ".safetensors"
MAX_INDEX_BYTES = 64 * 2**20
"""Largest index that is read; one of 10,000 tensors has a megabyte."""
_FILE_NAME = re.compile(r"\w[\w.-]{0,200}\.safetensors")
DTYPES = {
    **WEIGHT_TYPES,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Types of tensors by their names in a file (https://github.com/huggingface/safetensors, "Format")."""


@dataclass(frozen=True)
class TensorSize:
    """What a file says about a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Returns the size of `tensor`."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def num_values(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.num_values * self.dtype.itemsize


class TensorFolder:
    """The tensors of a folder, or of one file.

    Attributes:
        path: the folder or file.
        sizes: shape and type of every tensor, by name.
    """

    def __init__(self, path: Path, files: Mapping[str, Path], sizes: Mapping[str, TensorSize]):
        """Use `TensorFolder.open`; `files` has the file of every tensor."""
        self.path, self.sizes, self._files = path, dict(sizes), dict(files)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the headers of all files of a folder, or of the file `path`.

        Raises:
            CheckpointError: there are no safetensors files, some of those that the index names are missing, or one is
                damaged.
        """
        files: dict[str, Path] = {}
        sizes: dict[str, TensorSize] = {}
        for file in _files_of(path):
            for name, size in _read_header(file).items():
                files[name], sizes[name] = file, size
        return cls(path, files, sizes)

    def read(self, name: str) -> Tensor:
        """Returns the tensor `name`; to change it in place changes neither the file nor what others read.

        Raises:
            CheckpointError: its file has been removed or damaged since it was opened.
        """
        # A handle keeps all pages that were read through it in memory, so each tensor has its own.
        try:
            with safe_open(self._files[name], "pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _damaged(self._files[name], error) from None


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a folder of weights as transformers saves them")
    if (path / INDEX_NAME).is_file():
        return _indexed_files(path / INDEX_NAME)
    found = sorted(file for file in path.glob(f"*{SUFFIX}") if file.is_file())
    if len(found) == 1:
        return found
    if not found:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
        remedy = (
            f"{pickles[0]} is a pickle, which can run any program and is not read; save the model as safetensors"
            if pickles
            else "give a folder of weights as transformers saves them"
        )
        raise CheckpointError(f"{path}: no {SUFFIX} file; {remedy}")
    raise CheckpointError(f"{path}: {len(found)} {SUFFIX} files and no {INDEX_NAME}, which joins them; download it too")


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = {str(name) for name in read_object(index, MAX_INDEX_BYTES)["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(index, error) from None
    if strange := sorted(name for name in names if not _FILE_NAME.fullmatch(name)):
        raise CheckpointError(
            f"{index}: names {strange[0][:80]!a}, which is no {SUFFIX} file beside it; download it again"
        )
    files = [index.parent / name for name in sorted(names)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of the {len(files)} files that {index.name} names are missing, first"
            f" {missing[0]}; download them"
        )
    return files


def _read_header(path: Path) -> dict[str, TensorSize]:
    sizes = {}
    try:
        os.close(open_regular(path))
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                entry = file.get_slice(name)
                if entry.get_dtype() not in DTYPES:
                    raise CheckpointError(
                        f"{path}: {name} has the type {entry.get_dtype()}; save the model in bfloat16 or float32"
                    )
                sizes[name] = TensorSize(tuple(entry.get_shape()), DTYPES[entry.get_dtype()])
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None
    return sizes


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: damaged or incomplete ({error}); download it again")
