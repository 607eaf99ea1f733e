"""Rewriting a checkpoint as another number of ranks would have written it.

files of any layout -> shards of each parameter, rank by rank -> FOLDER/colocated/dpR-tp0.safetensors, state.json last

Training resumes from the files of any layout as they are. Reshape merges the many files of a large job into few, to
archive or to copy, or splits each parameter as finely as the next job's ranks will read it.
"""

from pathlib import Path

import torch
from torch import Tensor

from ufork.checkpoint.state import CheckpointState, FileRecord, verify, write_state
from ufork.errors import ConfigError
from ufork.files import whole_folder
from ufork.parallel.config import LayoutConfig
from ufork.parallel.engine.state_files import RankState, ShardRegion, StateFiles, state_path
from ufork.parallel.layout import MeshCoordinate, place_ranks


def reshape(path: Path, output: Path, *, num_ranks: int) -> CheckpointState:
    """Writes the checkpoint at `path` to `output` as `num_ranks` colocated ranks would; returns its state.

    Holds one rank's shards in memory, and a whole parameter where the checkpoint has it in tensor-parallel shards.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: `output` exists, or `num_ranks` is below one.
        StorageError: `output` cannot be written.
    """
    if num_ranks < 1:
        raise ConfigError(f"--ranks {num_ranks}: expected at least 1")
    if output.exists():
        raise ConfigError(f"--output {output}: exists already; give a folder that does not")
    state = verify(path, deep=True)
    with whole_folder(output) as draft:
        with StateFiles(path, state.files) as files:
            coordinates = place_ranks(LayoutConfig(), num_ranks)
            records = dict(_write_rank(files, draft, coordinate, num_ranks) for coordinate in coordinates)
        metadata = state.run_metadata.model_copy(update={"layout": f"colocated, tp 1, for {num_ranks} ranks"})
        reshaped = state.model_copy(update={"files": records, "run_metadata": metadata})
        write_state(draft, reshaped)
    return reshaped


def _write_rank(files: StateFiles, folder: Path, coordinate: MeshCoordinate, num_ranks: int) -> tuple[str, FileRecord]:
    target = state_path(folder, coordinate)
    target.parent.mkdir(exist_ok=True)
    image = _shards_of(files, coordinate.dp_rank, num_ranks).image()
    image.fill()
    checksum = image.write(target)
    return str(target.relative_to(folder)), FileRecord(bytes=target.stat().st_size, checksum=checksum)


def _shards_of(files: StateFiles, rank: int, num_ranks: int) -> RankState:
    shapes = files.shapes()
    regions = {name: _region(shape, rank, num_ranks) for name, shape in shapes.items()}
    tensors = {
        kind: {name: _read(files, kind, name, regions[name]) for name in sorted(files.names(kind))}
        for kind in files.kinds()
    }
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


def _region(shape: tuple[int, ...], rank: int, num_ranks: int) -> ShardRegion:
    size = -(-torch.Size(shape).numel() // num_ranks)
    return ShardRegion(tp=1, tp_rank=0, partition_dim=None, start=rank * size, stop=(rank + 1) * size)


def _read(files: StateFiles, kind: str, name: str, region: ShardRegion) -> Tensor:
    found = files.region(kind, name, region)
    assert found is not None
    return found
