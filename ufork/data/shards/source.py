"""Samples of a finished source, by number, from a folder or a URL.

    ShardSource(folder or URL, task).read(numbers)  --index: which bytes of which tar-->  Storage  --members-->  Samples

A source folder is `{shards folder}/{source}/{split}`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ufork.data.shards.index import MAX_INDEX_BYTES, ShardIndex, index_path
from ufork.data.shards.manifest import Manifest, ShardEntry, check_size
from ufork.data.shards.sample import Sample
from ufork.data.shards.storage import Span, Storage, open_storage
from ufork.data.shards.tar import BLOCK_BYTES, is_header_of
from ufork.errors import SampleError, ShardError, StorageError
from ufork.vocabulary import Task

_REMEDY = "prepare the data again"
_logger = logging.getLogger(__name__)


class ShardSource:
    """The samples of one task in one source folder, by number."""

    def __init__(self, folder: Path | str, task: Task) -> None:
        """Reads the manifest and the sizes of the shards; indices and shards are opened on first use.

        Raises:
            ConfigError: `folder` is a URL of a kind that cannot be read.
            ShardError: the manifest or a shard is missing, or a shard's size is not the manifest's.
        """
        self.task = Task(task)
        self.storage = open_storage(folder)
        self.manifest = Manifest.read(self.storage)
        self.entries = [entry for entry in self.manifest.shards if entry.task == self.task]
        for entry in self.entries:
            check_size(self.storage, entry)
        self._ends = np.cumsum([entry.samples for entry in self.entries], dtype=np.int64)
        self._starts = [0, *self._ends.tolist()]
        self._shards: dict[int, _IndexedShard] = {}

    @property
    def name(self) -> str:
        """Name such as "scenes-train-understanding", unique among the sources of a run."""
        return f"{self.manifest.source}-{self.manifest.split}-{self.task}"

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> Sample:
        """Reads sample `number`, counted in the order of the shards.

        Raises:
            IndexError: `number` is not in 0..len-1.
            ShardError: the shard cannot be read, or is not the one that was indexed.
            SampleError: the sample's members are missing or damaged.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name}: sample {number} of {len(self)}")
        (sample,) = self.read([number])
        if isinstance(sample, SampleError):
            raise sample
        return sample

    def read(self, numbers: Sequence[int]) -> list[Sample | SampleError]:
        """Reads samples by their numbers; one with missing or damaged members is returned as a SampleError.

        Raises:
            ShardError: a shard cannot be read, or is not the one that was indexed.
        """
        located = [(self._shard(shard), in_shard) for shard, in_shard in self.locate(numbers)]
        spans = [shard.span(in_shard) for shard, in_shard in located]
        contents = self.storage.read_spans(spans) if spans else []
        samples = []
        for (shard, in_shard), span, data in zip(located, spans, contents, strict=True):
            if not shard.fits(in_shard, data, span.start):
                shard.use_new_index()
                span = shard.span(in_shard)
                (data,) = self.storage.read_spans([span])
                shard.require_fits(in_shard, data, span.start)
            samples.append(self.decode(shard.members(in_shard, data, span.start), shard.where(in_shard)))
        return samples

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Returns every number once, shuffled by `generator`: the order of an epoch."""
        return generator.permutation(len(self))

    def first_number(self, shard: int) -> int:
        """Number of the first sample of shard `shard`, counted among this task's shards."""
        return self._starts[shard]

    def locate(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Returns the shard of each number, and its number within the shard."""
        shards = np.searchsorted(self._ends, numbers, side="right").tolist()
        return [(shard, number - self._starts[shard]) for shard, number in zip(shards, numbers, strict=True)]

    def decode(self, members: dict[str, bytes], where: object) -> Sample | SampleError:
        """Returns the sample of a key's members, or the reason why there is none."""
        try:
            sample = Sample.from_members(members, where=where)
        except SampleError as error:
            return error
        if sample.task != self.task:
            reason = f"its task is {sample.task}, expected {self.task}; {_REMEDY}"
            return SampleError(reason, sample=str(where))
        return sample

    def _shard(self, number: int) -> "_IndexedShard":
        shard = self._shards.get(number)
        if shard is None:
            entry = self.entries[number]
            shard = self._shards[number] = _IndexedShard(self.storage, entry)
        return shard

    def __getstate__(self) -> dict[str, Any]:
        """Omits the indices; a process that unpickles this reads those that it needs."""
        return {**vars(self), "_shards": {}}


class SampleLocation(NamedTuple):
    """A sample's shard and key, converted to text only when an error needs it."""

    shard: str
    key: str

    def __str__(self) -> str:
        return f"{self.shard}, sample {self.key!r}"


class _IndexedShard:
    """A tar and the offsets of its members.

    A saved index may be another tar's, and a tar may be replaced while it is read. So the headers of each sample that
    is read are compared with the index, which is built anew at a difference.
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        self._storage, self._entry, self._name = storage, entry, storage.where(entry.file)
        self._use(load_index(storage, entry) or build_index(storage, entry))

    def use_new_index(self) -> None:
        """Builds the index anew, since the saved one does not fit."""
        _logger.info("%s: its headers are not those in the index beside it, which is built anew", self._name)
        self._use(build_index(self._storage, self._entry))

    def _use(self, index: ShardIndex) -> None:
        if len(index) != (stated := self._entry.samples):
            raise ShardError(f"{self._name}: {len(index)} samples, the manifest says {stated}; {_REMEDY}")
        self._keys = index.keys
        # Lists: picking one element from a list is several times faster than from an array.
        self._columns = {name: (index.offsets[name].tolist(), index.sizes[name].tolist()) for name in index.offsets}

    def where(self, number: int) -> SampleLocation:
        return SampleLocation(self._name, self._keys[number])

    def span(self, number: int) -> Span:
        """Bytes of all members of sample `number`, which are neighbours in the tar, from the first one's header."""
        columns = self._columns.values()
        start = min(offsets[number] for offsets, _ in columns if offsets[number] >= 0) - BLOCK_BYTES
        return Span(self._entry.file, start, max(offsets[number] + sizes[number] for offsets, sizes in columns))

    def fits(self, number: int, data: bytes, start: int) -> bool:
        """Whether the headers in the bytes of the sample's span, which begins at `start`, are as the index says."""
        for extension, (offsets, sizes) in self._columns.items():
            header = offsets[number] - BLOCK_BYTES - start
            if offsets[number] >= 0 and not is_header_of(
                data[header : header + BLOCK_BYTES], self._keys[number], extension, sizes[number]
            ):
                return False
        return True

    def require_fits(self, number: int, data: bytes, start: int) -> None:
        """Raises ShardError unless `fits`."""
        if not self.fits(number, data, start):
            raise ShardError(f"{self._name}: changes while it is read; {_REMEDY}")

    def members(self, number: int, data: bytes, start: int) -> dict[str, bytes]:
        """Contents by extension, from the bytes of the sample's span, which begins at `start`."""
        members = {}
        for name, (offsets, sizes) in self._columns.items():
            if offsets[number] >= 0:
                begin = offsets[number] - start
                members[name] = data[begin : begin + sizes[number]]
                if len(members[name]) < sizes[number]:
                    raise ShardError(f"{self._name}: truncated since it was indexed; {_REMEDY}")
        return members


def load_index(storage: Storage, entry: ShardEntry) -> ShardIndex | None:
    """Reads the saved index of a shard; None where there is none that can be its."""
    if path := storage.local_path(entry.file):
        index = ShardIndex.load(path)
    else:
        try:
            contents = storage.contents(index_path(Path(entry.file)).name, MAX_INDEX_BYTES)
        except ShardError:
            return None
        index = ShardIndex.parse(contents, tar_bytes=entry.bytes)
    return index if index and len(index) == entry.samples else None


def build_index(storage: Storage, entry: ShardEntry) -> ShardIndex:
    """Builds the index of a shard from the tar's headers, and saves it if the tar is in a folder of this machine.

    Raises:
        ShardError: as `ShardIndex.build` does.
    """
    where, path = storage.where(entry.file), storage.local_path(entry.file)
    if path is None:
        _logger.info("%s: has no valid index beside it; reading the whole shard to build one", where)
        return ShardIndex.scan(memoryview(storage.contents(entry.file, entry.bytes)), where)
    index = ShardIndex.build(path)
    try:
        index.save(path)
    except StorageError as error:
        _logger.info("its new index is kept in memory only: %s", error)
    return index
