"""A job's ZeRO-3 state as files: one a rank, its shard of each parameter under the parameter's name.

    engine.shards() -> RankState --write--> STAGE/dp0-tp0.safetensors
    all files of all stages -> StateFiles.part(kind, name, Part) -> engine.restore

DeepSpeed's own files hold each rank's shards as one flat tensor without names, pickled: only the same layout can read
them, and reading them executes what is in them. Here a name leads to its parts wherever they lie, so that any layout
can go on from any other's files.
"""

import errno
import fcntl
import json
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import accumulate
from mmap import mmap
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ufork.errors import CheckpointError
from ufork.files import Checksum
from ufork.parallel.layout import MeshCoordinate

WEIGHT = "weight"
"""Kind of the parameters themselves, in fp32 where they train; other kinds are the optimizer's, by its own names."""
SUFFIX = ".safetensors"
_HEADER = "ufork"
_LENGTH_BYTES = 8
DISK_BLOCK = 4096
"""Bytes; what is written past the page cache begins and ends on a multiple of it, in memory and in the file."""
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64"}


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What one rank of a stage holds."""

    dp: int
    dp_rank: int
    tp: int
    tp_rank: int
    shapes: Mapping[str, tuple[int, ...]]
    """Of each parameter on this rank before ZeRO flattens it: a slice of the whole under tensor parallelism."""
    partition_dims: Mapping[str, int]
    """Along which dimension it is one."""
    optimizer_steps: int
    """Updates that the optimizer's numbers have seen."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """By kind and name, flat: 1/dp of the parameter, the last one padded."""

    def image(self, memory: Tensor | None = None) -> "FileImage":
        """The file's contents to be, in memory of their own.

        Args:
            memory: of an earlier image, overwritten where its size fits; fresh memory takes three times as long.
        """
        flat = {f"{kind}:{name}": t.detach() for kind, named in self.tensors.items() for name, t in named.items()}
        ends = list(accumulate((tensor.nbytes for tensor in flat.values()), initial=0))
        entries: dict[str, Any] = {
            name: {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
            for (name, tensor), start, end in zip(flat.items(), ends, ends[1:], strict=False)
        }
        facts = {name: value for name, value in vars(self).items() if name != "tensors"}
        header = json.dumps({"__metadata__": {_HEADER: json.dumps(facts)}, **entries}).encode()
        header += b" " * (-(len(header) + _LENGTH_BYTES) % DISK_BLOCK)
        head = struct.pack("<Q", len(header)) + header
        if memory is None or len(memory) != len(head) + ends[-1]:
            memory = torch.frombuffer(mmap(-1, len(head) + ends[-1]), dtype=torch.uint8)  # on a page's boundary
        memory[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        numbers = memory[len(head) :]
        coordinates = [
            numbers[start:end].view(t.dtype) for t, start, end in zip(flat.values(), ends, ends[1:], strict=False)
        ]
        return FileImage(memory, coordinates, list(flat.values()))


@dataclass(frozen=True)
class FileImage:
    """What a safetensors file will hold (https://huggingface.co/docs/safetensors has the format).

    Made by hand, since the library's own function holds Python's lock, which training needs, as long as it writes. Here
    a few calls that let go of it do all: each call by which a thread of low priority takes the lock back stops training
    until that thread gets a core.
    """

    memory: Tensor
    """uint8, the whole file: length of the header, header, numbers."""
    coordinates: list[Tensor]
    """Flat parts of it, one for each of `sources`."""
    sources: list[Tensor]

    def fill(self) -> None:
        """Copies the numbers; they may not change meanwhile."""
        torch._foreach_copy_(self.coordinates, self.sources)

    def write(self, path: Path) -> str:
        """Writes the file, through to the disk; its checksum.

        Raises:
            OSError: it cannot be written.
        """
        contents = self.memory.numpy().data
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            _write_through(file, contents)
        finally:
            os.close(file)
        return Checksum(contents).hexdigest()


def _write_through(file: int, contents: memoryview) -> None:
    """Past the page cache where the file system allows: filling it takes a core and memory from training."""
    whole_blocks = len(contents) // DISK_BLOCK * DISK_BLOCK
    _set_direct(file, True)
    try:
        _write_all(file, contents[:whole_blocks])
    except OSError as error:
        if error.errno != errno.EINVAL:  # it wants larger blocks, or cannot after all
            raise
    _set_direct(file, False)
    _write_all(file, contents[os.lseek(file, 0, os.SEEK_CUR) :])
    os.fsync(file)


def _set_direct(file: int, direct: bool) -> None:
    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_SETFL, getattr(os, "O_DIRECT", 0) if direct else 0)


def _write_all(file: int, contents: memoryview) -> None:
    while contents:
        contents = contents[os.write(file, contents) :]


def state_path(folder: Path, coordinate: MeshCoordinate) -> Path:
    """Where the rank at `place` has its file."""
    return folder / str(coordinate.stage) / f"dp{coordinate.dp_rank}-tp{coordinate.tp_rank}{SUFFIX}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """The entries `start` to `stop` of a parameter, flat: of the whole one, or of its `tp_rank`-th slice of `tp`."""

    tp: int
    tp_rank: int
    partition_dim: int | None
    """Along which the slices lie; None where every rank has the whole parameter."""
    start: int
    stop: int
    """Entries past the parameter's end are zero, as ZeRO pads them."""


_Parts = dict[tuple[int, int], tuple[dict[str, Any], Any]]
"""By (tp, dp) rank: the header, and the file."""


class StateFiles:
    """The files of all ranks of a job, opened but not read."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Reads the headers.

        Args:
            folder: of the checkpoint.
            names: paths of the files within `folder`; other files in it are not read.

        Raises:
            CheckpointError: there is no file, or one is damaged.
        """
        self.folder, self._stack = folder, ExitStack()
        self._files = [self._open(folder / name) for name in sorted(names)]
        if not self._files:
            raise CheckpointError(f"{folder}: no file of shards; is this a checkpoint?")

    def _open(self, path: Path) -> tuple[dict[str, Any], Any, frozenset[str]]:
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            return json.loads(file.metadata()[_HEADER]), file, frozenset(file.keys())
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged, or not a file of shards ({error})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def optimizer_steps(self) -> int:
        """Updates taken by the stages that train."""
        return max(header["optimizer_steps"] for header, _, _ in self._files)

    def kinds(self) -> set[str]:
        """What there is of parameters."""
        return {key.partition(":")[0] for _, _, keys in self._files for key in keys}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter that any rank holds a part of, whole."""
        shapes: dict[str, tuple[int, ...]] = {}
        for header, _, keys in self._files:
            for name in (key.partition(":")[2] for key in keys):
                shape = list(header["shapes"][name])
                if (dim := header["partition_dims"].get(name)) is not None:
                    shape[dim] *= header["tp"]
                shapes[name] = tuple(shape)
        return dict(sorted(shapes.items()))

    def whole(self, kind: str, name: str) -> Tensor | None:
        """The parts of all ranks as one tensor in the parameter's shape; None where no rank holds any.

        Raises:
            CheckpointError: a rank's part is missing.
        """
        if not (parts := self._parts(kind, name)):
            return None
        header, _ = parts[0, 0]
        dim = header["partition_dims"].get(name)
        slices = []
        for tp_rank in range(1 if dim is None else header["tp"]):
            shape = torch.Size(parts[tp_rank, 0][0]["shapes"][name])
            slices.append(_entries(parts, f"{kind}:{name}", tp_rank, 0, shape.numel()).view(shape))
        return slices[0] if dim is None else torch.cat(slices, dim=dim)

    def part(self, kind: str, name: str, part: Part) -> Tensor | None:
        """What a rank holds of a parameter, in any layout; None where no rank held any when it was written.

        Reads just that where the slices are the same as then, else the whole parameter. Raises as `whole`.
        """
        if not (parts := self._parts(kind, name)):
            return None
        header, _ = parts[0, 0]
        if header["tp"] == part.tp or name not in header["partition_dims"] and part.partition_dim is None:
            tp_rank = min(part.tp_rank, header["tp"] - 1)
            num_entries = torch.Size(parts[tp_rank, 0][0]["shapes"][name]).numel()
            flat = _entries(parts, f"{kind}:{name}", tp_rank, part.start, min(part.stop, num_entries))
        else:
            whole = self.whole(kind, name)
            assert whole is not None
            own = whole if part.partition_dim is None else whole.chunk(part.tp, dim=part.partition_dim)[part.tp_rank]
            flat = own.flatten()[part.start : part.stop]
        return torch.nn.functional.pad(flat, (0, part.stop - part.start - flat.numel()))

    def _parts(self, kind: str, name: str) -> _Parts:
        key = f"{kind}:{name}"
        parts = {(h["tp_rank"], h["dp_rank"]): (h, file) for h, file, keys in self._files if key in keys}
        header = next(iter(parts.values()))[0] if parts else {"tp": 0, "dp": 0}
        expected = {(tp_rank, dp_rank) for tp_rank in range(header["tp"]) for dp_rank in range(header["dp"])}
        if missing := sorted(expected - parts.keys()):
            raise CheckpointError(f"{self.folder}: {name} has no part of (tp, dp) rank {missing[0]}; a file is missing")
        return parts


def _entries(parts: _Parts, key: str, tp_rank: int, start: int, stop: int) -> Tensor:
    """Entries of a slice, from the shards that they lie in and no others."""
    if start >= stop:  # a rank that has nothing but padding
        return torch.empty(0)
    shards = [parts[tp_rank, dp_rank][1].get_slice(key) for dp_rank in range(parts[tp_rank, 0][0]["dp"])]
    (size,) = shards[0].get_shape()
    pieces = [
        shards[number][max(start - number * size, 0) : min(stop - number * size, size)]
        for number in range(start // size, -(-stop // size))
    ]
    return torch.cat(pieces)
