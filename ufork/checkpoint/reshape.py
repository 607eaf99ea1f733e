"""A checkpoint as ranks of another number would have written it.

files of any layout -> part of each parameter, rank by rank -> FOLDER/whole/dpR-tp0.safetensors, state.json last

Any layout goes on from any other's files as they are. What this is for: the many files of a large job made into few, to
keep or to move; or each parameter cut as finely as the next job's ranks will read it.
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from ufork.checkpoint.folder import CheckpointState, FileRecord, verify, write_state
from ufork.errors import CheckpointError, ConfigError, StorageError
from ufork.parallel.config import LayoutConfig
from ufork.parallel.engine.state_files import Part, RankState, StateFiles, state_path
from ufork.parallel.layout import place_ranks


def reshape(path: Path, output: Path, *, num_ranks: int) -> CheckpointState:
    """Writes the checkpoint at `path` into `output`, as the colocated layout on `num_ranks` ranks; what it says.

    Holds one rank's share in memory, and a whole parameter where the checkpoint has it in tensor-parallel slices.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: `output` is there already, or `num_ranks` is below one.
        StorageError: it cannot be written.
    """
    if num_ranks < 1 or output.exists():
        raise ConfigError(f"--ranks {num_ranks}, --output {output}: at least one rank, and a folder that is not there")
    state = verify(path, deep=True)
    draft = output.with_name(f"{output.name}.unfinished")
    records = {}
    shutil.rmtree(draft, ignore_errors=True)  # of one that was interrupted
    try:
        with StateFiles(path) as files:
            for rank, coordinate in enumerate(place_ranks(LayoutConfig(), num_ranks)):
                target = state_path(draft, coordinate)
                target.parent.mkdir(parents=True, exist_ok=True)
                image = _shards_of(files, rank, num_ranks).image()
                image.fill()
                checksum = image.write(target)
                records[str(target.relative_to(draft))] = FileRecord(bytes=target.stat().st_size, checksum=checksum)
        reshaped = state.model_copy(update={"files": records, "layout": f"colocated, tp 1, for {num_ranks} ranks"})
        write_state(draft, reshaped)
        draft.rename(output)
    except OSError as error:
        raise StorageError(f"{output}: cannot be written ({error.strerror}); free space, or give another") from None
    return reshaped


def _shards_of(files: StateFiles, rank: int, num_ranks: int) -> RankState:
    shapes = files.shapes()
    parts = {name: _part(shape, rank, num_ranks) for name, shape in shapes.items()}
    tensors = {kind: {name: _read(files, kind, name, part) for name, part in parts.items()} for kind in files.kinds()}
    return RankState(
        dp=num_ranks,
        dp_rank=rank,
        tp=1,
        tp_rank=0,
        shapes=shapes,
        partition_dims={},
        optimizer_steps=files.optimizer_steps,
        tensors=tensors,
    )


def _part(shape: tuple[int, ...], rank: int, num_ranks: int) -> Part:
    size = -(-torch.Size(shape).numel() // num_ranks)
    return Part(tp=1, tp_rank=0, partition_dim=None, start=rank * size, stop=(rank + 1) * size)


def _read(files: StateFiles, kind: str, name: str, part: Part) -> Tensor:
    found = files.part(kind, name, part)
    if found is None:
        raise CheckpointError(f"{files.folder}: no {kind} of {name}; the checkpoint is not whole")
    return found
