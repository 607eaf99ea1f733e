"""A job's ZeRO-3 state as files: one per rank, with its shard of each parameter under the parameter's name.

    EngineShards.read() -> RankState -> FileImage -> STAGE/dp0-tp0.safetensors
    all files of all stages -> StateFiles.region(kind, name, ShardRegion) -> EngineShards.restore

DeepSpeed's own files hold each rank's shards as one flat, unnamed, pickled tensor: only the same layout can read them,
and reading them executes their content. Here every shard is found by name, so that any layout can resume from the
files of any other.
"""

import errno
import fcntl
import json
import math
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
from pydantic import NonNegativeInt, PositiveInt
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ufork.config import Config
from ufork.errors import CheckpointError, ConfigError
from ufork.files import Checksum, open_regular
from ufork.parallel.layout import MeshCoordinate
from ufork.tensor_file import is_finite

WEIGHT = "weight"
"""Kind of the parameters themselves, in fp32 where they train; other kinds are optimizer state, by its own names."""
SUFFIX = ".safetensors"
_HEADER = "ufork"
_LENGTH_BYTES = 8
DISK_BLOCK = 4096
"""Bytes; direct writes begin and end on a multiple of it, in memory and in the file."""
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64"}


@dataclass(frozen=True, kw_only=True)
class RankState:
    """Shards of one rank of a stage."""

    dp: int
    dp_rank: int
    tp: int
    tp_rank: int
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each parameter on this rank before ZeRO flattens it; of its tp shard under tensor parallelism."""
    partition_dims: Mapping[str, int]
    """Dimension along which a parameter is partitioned over the tp ranks; absent if every rank holds all of it."""
    optimizer_steps: int
    """Updates that the optimizer state has seen."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Flat tensors by kind and parameter name: 1/dp of the parameter each, the last one padded."""

    def image(self, memory: Tensor | None = None) -> "FileImage":
        """Returns the content of the rank's file, laid out in its own memory but not yet copied (`FileImage.fill`).

        Args:
            memory: memory of an earlier image, reused if its size fits; fresh memory takes three times as long.
        """
        flat = _in_order_of_memory(
            {f"{kind}:{name}": t.detach() for kind, named in self.tensors.items() for name, t in named.items()}
        )
        ends = list(accumulate((tensor.nbytes for tensor in flat.values()), initial=0))
        entries: dict[str, Any] = {
            name: {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
            for (name, tensor), start, end in zip(flat.items(), ends, ends[1:], strict=False)
        }
        metadata = {name: value for name, value in vars(self).items() if name != "tensors"}
        header = json.dumps({"__metadata__": {_HEADER: json.dumps(metadata)}, **entries}).encode()
        header += b" " * (-(len(header) + _LENGTH_BYTES) % DISK_BLOCK)
        header = struct.pack("<Q", len(header)) + header
        if memory is None or len(memory) != len(header) + ends[-1]:
            memory = torch.frombuffer(mmap(-1, len(header) + ends[-1]), dtype=torch.uint8)  # on a page's boundary
        memory[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        sources = _joined(flat.values())
        numbers = memory[len(header) :].split([source.nbytes for source in sources])
        targets = [place.view(source.dtype) for place, source in zip(numbers, sources, strict=True)]
        return FileImage(memory, targets, sources)


def _in_order_of_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of one flat tensor side by side in its order; wide types first, so that every value is aligned."""
    storages: dict[int, int] = {}
    for tensor in tensors.values():
        storages.setdefault(tensor.untyped_storage().data_ptr(), len(storages))

    def place(name: str) -> tuple[int, int, int]:
        tensor = tensors[name]
        return -tensor.itemsize, storages[tensor.untyped_storage().data_ptr()], int(tensor.storage_offset())

    return {name: tensors[name] for name in sorted(tensors, key=place)}


def _joined(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Flat tensors over the same memory in the same order, neighbours as one: few large copies instead of many."""
    joined: list[Tensor] = []
    for tensor in tensors:
        last = joined[-1] if joined else None
        if last is not None and _follows(tensor, last):
            joined[-1] = last.as_strided((len(last) + len(tensor),), (1,), last.storage_offset())
        else:
            joined.append(tensor)
    return joined


def _follows(tensor: Tensor, last: Tensor) -> bool:
    same_storage = tensor.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
    side_by_side = tensor.storage_offset() == last.storage_offset() + len(last)
    return same_storage and side_by_side and tensor.dtype == last.dtype


@dataclass(frozen=True)
class FileImage:
    """Content of a safetensors file (format: https://huggingface.co/docs/safetensors).

    Written without the library, whose function holds Python's global lock, which training needs, while it writes. Here
    few calls do everything, and they release the lock: each time a thread of low priority takes it back, training stops
    until that thread gets a core.
    """

    memory: Tensor
    """uint8, the whole file: length of the header, header, values."""
    targets: list[Tensor]
    """Flat views into `memory`, one for each of `sources`."""
    sources: list[Tensor]
    """The rank's shards where they are, those that lie side by side in one flat tensor as one."""

    def fill(self) -> None:
        """Copies the values, which may not change meanwhile."""
        torch._foreach_copy_(self.targets, self.sources)

    def write(self, path: Path) -> str:
        """Writes the file and syncs it to disk; returns its checksum.

        Raises:
            OSError: it cannot be written.
        """
        contents = self.memory.numpy().data
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
        try:
            _write_through(file, contents)
        finally:
            os.close(file)
        return Checksum(contents).hexdigest()


def _write_through(file: int, contents: memoryview) -> None:
    """Bypasses the page cache where the file system allows: filling it takes a core and memory from training."""
    whole_blocks = len(contents) // DISK_BLOCK * DISK_BLOCK
    _set_direct(file, True)
    try:
        _write_all(file, contents[:whole_blocks])
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system wants larger blocks, or supports no direct writes
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
    """Returns the path of the file of the rank at `coordinate`."""
    return folder / str(coordinate.stage) / _file_name(coordinate.dp_rank, coordinate.tp_rank)


def _file_name(dp_rank: int, tp_rank: int) -> str:
    return f"dp{dp_rank}-tp{tp_rank}{SUFFIX}"


@dataclass(frozen=True, kw_only=True)
class ShardRegion:
    """The flat entries `start` to `stop` of a parameter: of the whole one, or of tp shard `tp_rank` of `tp`."""

    tp: int
    tp_rank: int
    partition_dim: int | None
    """Dimension along which the parameter is partitioned; None if every rank holds all of it."""
    start: int
    stop: int
    """Entries past the parameter's end are zero, ZeRO's padding."""


class _Header(Config):
    """What a file says about its rank: `RankState` without the tensors."""

    dp: PositiveInt
    dp_rank: NonNegativeInt
    tp: PositiveInt
    tp_rank: NonNegativeInt
    shapes: Mapping[str, tuple[NonNegativeInt, ...]]
    partition_dims: Mapping[str, NonNegativeInt]
    optimizer_steps: NonNegativeInt

    def of(self, name: str) -> tuple[Any, ...]:
        """Returns what the files of all ranks must have in common about a parameter."""
        return self.dp, self.tp, self.shapes[name], self.partition_dims.get(name)


_Shards = dict[tuple[int, int], tuple[_Header, Any]]
"""Header and file by (tp rank, dp rank)."""


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
            raise CheckpointError(
                f"{folder}: contains no checkpoint files (*/*{SUFFIX}); give the folder of a checkpoint"
            )

    def _open(self, path: Path) -> tuple[_Header, Any, frozenset[str]]:
        try:
            os.close(open_regular(path))
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            header = _Header.from_mapping(json.loads(file.metadata()[_HEADER]), origin=str(path))
            if path.name != _file_name(header.dp_rank, header.tp_rank):
                raise ValueError(f"it is the file of rank (tp, dp) {header.tp_rank, header.dp_rank}")
            keys = frozenset(file.keys())
            for key in keys:
                _check_entry(key, file.get_slice(key), header)
            return header, file, keys
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
            raise CheckpointError(f"{path}: damaged, or not a checkpoint file ({error})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def optimizer_steps(self) -> int:
        """Updates taken by the stages that train."""
        return max(header.optimizer_steps for header, _, _ in self._files)

    def kinds(self) -> set[str]:
        """Returns the kinds of values that the files hold."""
        return {key.partition(":")[0] for _, _, keys in self._files for key in keys}

    def names(self, kind: str) -> set[str]:
        """Returns the parameters that the files hold such values of; optimizers keep different ones for some."""
        return {key.partition(":")[2] for _, _, keys in self._files for key in keys if key.startswith(f"{kind}:")}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the whole shape of every parameter in the files."""
        shapes: dict[str, tuple[int, ...]] = {}
        for header, _, keys in self._files:
            for name in (key.partition(":")[2] for key in keys):
                shape = list(header.shapes[name])
                if (dim := header.partition_dims.get(name)) is not None:
                    shape[dim] *= header.tp
                shapes[name] = tuple(shape)
        return dict(sorted(shapes.items()))

    def whole(self, kind: str, name: str) -> Tensor | None:
        """Returns the whole parameter, joined from the shards of all ranks; None if no rank holds any of it.

        Raises:
            CheckpointError: a rank's shard is missing.
        """
        if not (shards := self._shards(kind, name)):
            return None
        header, _ = shards[0, 0]
        dim = header.partition_dims.get(name)
        tp_shards = []
        for tp_rank in range(1 if dim is None else header.tp):
            shape = torch.Size(shards[tp_rank, 0][0].shapes[name])
            tp_shards.append(_entries(shards, f"{kind}:{name}", tp_rank, 0, shape.numel()).view(shape))
        return tp_shards[0] if dim is None else torch.cat(tp_shards, dim=dim)

    def region(self, kind: str, name: str, region: ShardRegion) -> Tensor | None:
        """Returns a region of a parameter, as a rank of any layout needs it; None if no rank holds any of it.

        Reads the region only if tp is the same as in the files, else the whole parameter. Raises as `whole`.
        """
        if not (shards := self._shards(kind, name)):
            return None
        header, _ = shards[0, 0]
        if header.tp == region.tp or name not in header.partition_dims and region.partition_dim is None:
            tp_rank = min(region.tp_rank, header.tp - 1)
            num_entries = torch.Size(shards[tp_rank, 0][0].shapes[name]).numel()
            flat = _entries(shards, f"{kind}:{name}", tp_rank, region.start, min(region.stop, num_entries))
        else:
            own = self.whole(kind, name)
            assert own is not None
            if region.partition_dim is not None:
                own = own.chunk(region.tp, dim=region.partition_dim)[region.tp_rank]
            flat = own.flatten()[region.start : region.stop]
        return torch.nn.functional.pad(flat, (0, region.stop - region.start - flat.numel()))

    def _shards(self, kind: str, name: str) -> _Shards:
        key = f"{kind}:{name}"
        shards = {(h.tp_rank, h.dp_rank): (h, file) for h, file, keys in self._files if key in keys}
        if len({header.of(name) for header, _ in shards.values()}) > 1:
            raise CheckpointError(
                f"{self.folder}: the files differ in the shape or the ranks of {name}; one is damaged"
            )
        if not shards:
            return shards
        header, _ = next(iter(shards.values()))
        ranks = ((tp_rank, dp_rank) for tp_rank in range(header.tp) for dp_rank in range(header.dp))
        # the first that is missing: a damaged number of ranks may be anything
        if missing := next((rank for rank in ranks if rank not in shards), None):
            raise CheckpointError(f"{self.folder}: {name} has no shard of (tp, dp) rank {missing}; a file is missing")
        return shards


def _check_entry(key: str, entry: Any, header: _Header) -> None:
    """Raises ValueError or KeyError if a tensor is not a rank's flat shard of the parameter in its name."""
    name = key.partition(":")[2]
    shape, dim = header.shapes[name], header.partition_dims.get(name)
    expected = [-(-math.prod(shape) // header.dp)]
    if entry.get_shape() != expected or entry.get_dtype() not in _DTYPES.values() or (dim or 0) >= max(len(shape), 1):
        raise ValueError(
            f"{key} is {entry.get_dtype()} {entry.get_shape()}, expected {expected} of floating-point numbers"
        )


def _entries(shards: _Shards, key: str, tp_rank: int, start: int, stop: int) -> Tensor:
    """Entries of one tp shard, read only from the dp shards that hold them."""
    if start >= stop:  # the rank holds nothing but padding
        return torch.empty(0)
    dp_shards = [shards[tp_rank, dp_rank][1].get_slice(key) for dp_rank in range(shards[tp_rank, 0][0].dp)]
    (size,) = dp_shards[0].get_shape()
    pieces = [
        dp_shards[number][max(start - number * size, 0) : min(stop - number * size, size)]
        for number in range(start // size, -(-stop // size))
    ]
    entries = torch.cat(pieces)
    if not is_finite(entries):
        raise CheckpointError(f"{key} holds NaN or infinite values in the checkpoint; resume from another one")
    return entries
