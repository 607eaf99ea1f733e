"""A job's ZeRO-3 state as files: one a rank, its shard of each parameter under the parameter's name.

    engine.shards() -> RankShards --write--> STAGE/dp0-tp0.safetensors
    all files of all stages -> ShardFiles.whole(kind, name) -> engine.restore cuts out its own shard

DeepSpeed's own files hold each rank's shards as one flat tensor without names, pickled: only the same layout can read
them, and reading them executes what is in them. Here a name leads to its parts wherever they lie, so that any layout
can go on from any other's files.
"""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ufork.errors import CheckpointError
from ufork.parallel.layout import Place

WEIGHT = "weight"
"""Kind of the parameters themselves, in fp32 where they train; other kinds are the optimizer's, by its own names."""
SUFFIX = ".safetensors"
_HEADER = "ufork"


@dataclass(frozen=True, kw_only=True)
class RankShards:
    """What one rank of a stage holds."""

    dp: int
    dp_rank: int
    tp: int
    tp_rank: int
    shapes: Mapping[str, tuple[int, ...]]
    """Of each parameter on this rank before ZeRO flattens it: a slice of the whole under tensor parallelism."""
    sliced_dims: Mapping[str, int]
    """Along which dimension it is one."""
    optimizer_steps: int
    """Updates that the optimizer's numbers have seen."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """By kind and name, flat: 1/dp of the parameter, the last one padded."""

    def copied(self) -> Self:
        """The same in memory of its own, on the CPU: training may go on meanwhile."""
        copies = {
            kind: {name: tensor.detach().to("cpu", copy=True) for name, tensor in named.items()}
            for kind, named in self.tensors.items()
        }
        return type(self)(**{**vars(self), "tensors": copies})

    def write(self, path: Path) -> None:
        """Writes the file, through to the disk.

        Raises:
            OSError: it cannot be written.
        """
        header = {name: value for name, value in vars(self).items() if name != "tensors"}
        flat = {f"{kind}:{name}": tensor for kind, named in self.tensors.items() for name, tensor in named.items()}
        try:
            save_file(flat, path, metadata={_HEADER: json.dumps(header)})
        except SafetensorError as error:
            raise OSError(str(error)) from None
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def shard_path(folder: Path, place: Place) -> Path:
    """Where the rank at `place` has its file."""
    return folder / str(place.stage) / f"dp{place.dp_rank}-tp{place.tp_rank}{SUFFIX}"


class ShardFiles:
    """The files of all ranks of a job, opened but not read."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers.

        Raises:
            CheckpointError: there is no file, or one is damaged.
        """
        self.folder, self._stack = folder, ExitStack()
        self._files = [self._open(path) for path in sorted(folder.glob(f"*/*{SUFFIX}"))]
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

    def whole(self, kind: str, name: str) -> Tensor | None:
        """The parts of all ranks as one tensor in the parameter's shape; None where no rank holds any."""
        key = f"{kind}:{name}"
        parts = {(h["tp_rank"], h["dp_rank"]): (h, file) for h, file, keys in self._files if key in keys}
        if not parts:
            return None
        header = next(iter(parts.values()))[0]
        expected = {(tp_rank, dp_rank) for tp_rank in range(header["tp"]) for dp_rank in range(header["dp"])}
        if missing := sorted(expected - parts.keys()):
            raise CheckpointError(f"{self.folder}: {name} has no part of (tp, dp) rank {missing[0]}; a file is missing")
        slices = []
        for tp_rank in range(header["tp"]):
            shape = parts[tp_rank, 0][0]["shapes"][name]
            flat = torch.cat([parts[tp_rank, dp_rank][1].get_tensor(key) for dp_rank in range(header["dp"])])
            slices.append(flat[: torch.Size(shape).numel()].view(shape))
        dim = header["sliced_dims"].get(name)
        return slices[0] if dim is None else torch.cat(slices, dim=dim)
