"""Verifies shards against their manifest, down to every sample, and reports every fault.

each shard, by several processes: size, checksum, index against the tar, every sample readable
all shards together: ids are unique
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.sharding.progress import Progress
from data_prep.sharding.unique_ids import UniqueIds, ids_with
from ufork.data.shards.index import ShardIndex, index_path
from ufork.data.shards.manifest import Manifest, ShardEntry
from ufork.data.shards.sample import Sample
from ufork.errors import SampleError, ShardError
from ufork.files import checksum_of
from ufork.processes.worker_pool import run_jobs

_NAMED_SAMPLES = 5
"""Faulty samples that are named per shard; the others are counted."""


@dataclass(frozen=True)
class ShardFindings:
    """Ids and faults of one shard."""

    ids: list[str]
    faults: list[str]


def verify_shards(folder: Path, *, num_workers: int = 1) -> list[str]:
    """Returns a description of every fault in a source folder; an empty list if there is none.

    Args:
        folder: folder of a finished source.
        num_workers: number of processes; each verifies one shard at a time.

    Raises:
        ShardError: the manifest is missing or cannot be read.
        StorageError: temporary files cannot be written (8 bytes per sample).
    """
    manifest = Manifest.load(folder)
    faults: list[str] = []
    progress, num_samples = Progress("verify", unit="samples", total=sum(s.samples for s in manifest.shards)), 0
    shards = range(len(manifest.shards))
    with (
        UniqueIds() as ids,
        closing(run_jobs(shards, partial(_open_checks, folder), num_workers=num_workers)) as results,
    ):
        for _, found in results:
            ids.add(found.ids)
            faults += found.faults
            num_samples += len(found.ids)
            progress.reach(num_samples, f"{len(faults)} faults")
        repeated = ids.repeated()
    if repeated:
        faults += [f"{name}: id of more than one sample" for name in ids_with(repeated, _all_ids(folder))]
    progress.finish(num_samples, f"{len(faults)} faults")
    return sorted(faults)


def _all_ids(folder: Path) -> Iterator[str]:
    for entry in Manifest.load(folder).shards:
        yield from _check_shard(folder, entry).ids


def _open_checks(folder: Path) -> Callable[[int], ShardFindings]:
    """Returns the function that verifies a shard by its number in the manifest; called once per process."""
    shards = Manifest.load(folder).shards
    return lambda number: _check_shard(folder, shards[number])


def _check_shard(folder: Path, entry: ShardEntry) -> ShardFindings:
    path = folder / entry.file
    try:
        index = ShardIndex.build(path)
    except ShardError as error:
        return ShardFindings([], [str(error)])
    faults = [f"{path}: {fault}" for fault in _file_faults(path, entry, index)]
    ids, unreadable = _read_samples(path, entry, index)
    faults += unreadable[:_NAMED_SAMPLES]
    if len(unreadable) > _NAMED_SAMPLES:
        faults.append(f"{path}: {len(unreadable) - _NAMED_SAMPLES} more samples that cannot be read")
    return ShardFindings(ids, faults)


def _file_faults(path: Path, entry: ShardEntry, index: ShardIndex) -> Iterator[str]:
    if index.tar_bytes != entry.bytes:
        yield f"{index.tar_bytes} bytes, expected {entry.bytes} by the manifest"
    if (found := checksum_of(path)) != entry.checksum:
        yield f"checksum {found}, expected {entry.checksum} by the manifest"
    if len(index) != entry.samples:
        yield f"{len(index)} samples, expected {entry.samples} by the manifest"
    saved = ShardIndex.load(path)
    if saved is None:
        yield f"{index_path(path).name} is missing, damaged or of another tar; delete it, reading the shard rebuilds it"
    elif not _same(saved, index):
        yield f"{index_path(path).name} does not match the tar; delete it, reading the shard rebuilds it"


def _same(one: ShardIndex, other: ShardIndex) -> bool:
    pairs = [(one.offsets, other.offsets), (one.sizes, other.sizes)]
    return one.keys == other.keys and all(
        mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in pairs
    )


def _read_samples(path: Path, entry: ShardEntry, index: ShardIndex) -> tuple[list[str], list[str]]:
    """Returns the ids of the samples, and a message for each sample at fault."""
    ids, faults = [], []
    with open(path, "rb") as file:
        for number, key in enumerate(index.keys):
            members = {}
            for name, offsets in index.offsets.items():
                if offsets[number] >= 0:
                    file.seek(offsets[number])
                    members[name] = file.read(index.sizes[name][number])
            try:
                sample = Sample.from_members(members, f"{path}, sample {key!r}")
            except SampleError as error:
                faults.append(str(error))
                continue
            ids.append(sample.id)
            if sample.task != entry.task:
                faults.append(f"{path}, sample {key!r}: task {sample.task}, expected {entry.task} as its shard")
    return ids, faults
