"""Finished sources on disk, and their samples by number.

    folder/manifest.json  ->  Manifest  ->  ShardSource(folder, task)[i]  --one pread through the index-->  Sample

A source folder is `{shards folder}/{source}/{split}`; its manifest is written last, so a folder that has one is whole.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ufork.data.index import ShardIndex
from ufork.data.sample import Sample
from ufork.errors import SampleError, ShardError
from ufork.vocabulary import Task

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
_REMEDY = "prepare the data again"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar of a source."""

    file: str
    """Name within the source folder."""
    task: Task
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished source folder holds."""

    source: str
    split: str
    licence: str
    attribution: str
    recipe: str
    """Digest of everything that the shards were made from: when it is equal they need not be made again."""
    shards: tuple[ShardEntry, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    """Inputs that were left out, by reason."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the source tells of itself: its vocabulary, the codec of its codes."""
    version: int = MANIFEST_VERSION

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads the manifest in `folder`.

        Raises:
            ShardError: there is none, or it is not one of this version.
        """
        path = folder / MANIFEST_FILE
        try:
            values = json.loads(path.read_bytes())
            if values["version"] != MANIFEST_VERSION:
                raise ShardError(f"{path}: version {values['version']}, expected {MANIFEST_VERSION}; {_REMEDY}")
            values["shards"] = tuple(ShardEntry(**{**entry, "task": Task(entry["task"])}) for entry in values["shards"])
            return cls(**{name.name: values[name.name] for name in fields(cls)})
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{path}: not a manifest of ufork's ({error!r}); {_REMEDY}") from None

    def save(self, folder: Path) -> None:
        """Writes the manifest into `folder`, whole or not at all.

        Raises:
            OSError: the folder cannot be written.
        """
        draft = folder / f"{MANIFEST_FILE}.part"
        draft.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(folder / MANIFEST_FILE)

    def num_samples(self, task: Task) -> int:
        """Samples of `task` over all shards."""
        return sum(entry.samples for entry in self.shards if entry.task == task)

    def check(self, folder: Path, *, deep: bool = False) -> None:
        """Compares the shards in `folder` with the manifest: sizes, and checksums when `deep`.

        Raises:
            ShardError: names the first shard that is missing or differs.
        """
        for entry in self.shards:
            path = folder / entry.file
            check_size(path, entry.bytes)
            if deep and (found := sha256_of(path)) != entry.sha256:
                raise ShardError(f"{path}: its sha256 is {found}, the manifest says {entry.sha256}; {_REMEDY}")


class ShardSource:
    """The samples of one task in one source folder, by number. Reads are by `pread`: threads may share one."""

    def __init__(self, folder: Path, task: Task) -> None:
        """Reads the manifest and the sizes of the shards; indices and shards are opened on first use.

        Raises:
            ShardError: the manifest or a shard is missing, or a shard's size is not the manifest's.
        """
        self.folder = Path(folder)
        self.task = Task(task)
        self.manifest = Manifest.load(self.folder)
        self._entries = [entry for entry in self.manifest.shards if entry.task == self.task]
        for entry in self._entries:
            check_size(self.folder / entry.file, entry.bytes)
        self._ends = np.cumsum([entry.samples for entry in self._entries], dtype=np.int64)
        self._starts = [0, *self._ends.tolist()]
        self._shards: dict[int, _OpenShard] = {}

    @property
    def name(self) -> str:
        """As "scenes-train-understanding": unique among the sources of a run."""
        return f"{self.manifest.source}-{self.manifest.split}-{self.task}"

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> Sample:
        """Sample `number` in the order of the shards.

        Raises:
            IndexError: `number` is not in 0..len-1.
            ShardError: the shard cannot be read, or is not the one that was indexed.
            SampleError: the sample's members cannot be understood.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name}: sample {number} of {len(self)}")
        (sample,) = self.read([number])
        if isinstance(sample, SampleError):
            raise sample
        return sample

    def read(self, numbers: Sequence[int]) -> list[Sample | SampleError]:
        """Samples by their numbers; in place of one whose members cannot be understood, what is wrong with it.

        Raises:
            ShardError: a shard cannot be read, or is not the one that was indexed.
        """
        shards = np.searchsorted(self._ends, numbers, side="right").tolist()
        return [self._read(shard, number - self._starts[shard]) for shard, number in zip(shards, numbers, strict=True)]

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Every number once, shuffled by `generator`: the order of an epoch."""
        return generator.permutation(len(self))

    def _read(self, shard: int, in_shard: int) -> Sample | SampleError:
        opened = self._shards.get(shard) or self._open(shard)
        where = opened.where(in_shard)
        try:
            sample = Sample.from_members(opened.read(in_shard), where=where)
        except SampleError as error:
            return error
        if sample.task != self.task:
            return SampleError(f"{where}: its task is {sample.task}, expected {self.task}; {_REMEDY}")
        return sample

    def _open(self, shard: int) -> "_OpenShard":
        entry = self._entries[shard]
        return self._shards.setdefault(shard, _OpenShard(self.folder / entry.file, entry.samples))

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind: a process that unpickles this opens its own."""
        return {**self.__dict__, "_shards": {}}


class _Place(NamedTuple):
    """A sample's, in words once an error needs them."""

    path: Path
    key: str

    def __str__(self) -> str:
        return f"{self.path}, sample {self.key!r}"


class _OpenShard:
    """A tar's file descriptor and index."""

    def __init__(self, path: Path, num_samples: int) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with the source)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
        self._index = load_or_build_index(path)
        if len(self._index) != num_samples:
            raise ShardError(f"{path}: {len(self._index)} samples, the manifest says {num_samples}; {_REMEDY}")

    @cached_property
    def _columns(self) -> dict[str, tuple[list[int], list[int]]]:
        # Lists: picking one element from a list is several times faster than from an array.
        index = self._index
        return {name: (index.offsets[name].tolist(), index.sizes[name].tolist()) for name in index.offsets}

    def where(self, number: int) -> "_Place":
        return _Place(self.path, self._index.keys[number])

    def read(self, number: int) -> dict[str, bytes]:
        """Members of sample `number` by extension; one read spans them all, as they are neighbours."""
        spans = [
            (name, offsets[number], offsets[number] + sizes[number])
            for name, (offsets, sizes) in self._columns.items()
            if offsets[number] >= 0
        ]
        start, end = min(span[1] for span in spans), max(span[2] for span in spans)
        try:
            data = os.pread(self._file.fileno(), end - start, start)
        except OSError as error:
            raise ShardError(f"{self.where(number)}: cannot be read ({error.strerror})") from None
        if len(data) < end - start:
            raise ShardError(f"{self.path}: truncated since it was indexed; {_REMEDY}")
        return {name: data[first - start : last - start] for name, first, last in spans}


def load_or_build_index(tar_path: Path) -> ShardIndex:
    """The saved index of the tar, or one built now and, where the folder can be written, saved.

    Raises:
        ShardError: as `ShardIndex.build` does.
    """
    index = ShardIndex.load(tar_path)
    if index is None:
        index = ShardIndex.build(tar_path)
        try:
            index.save(tar_path)
        except OSError as error:
            _logger.info("%s: its new index is kept in memory only (%s)", tar_path, error.strerror)
    return index


def check_size(path: Path, expected_bytes: int) -> None:
    """Holds the file at `path` against its size.

    Raises:
        ShardError: it is missing or of another size.
    """
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    if found != expected_bytes:
        kind = "truncated" if found < expected_bytes else "changed"
        raise ShardError(f"{path}: {kind}: {found} bytes, the manifest says {expected_bytes}; {_REMEDY}")


def sha256_of(path: Path) -> str:
    """Checksum of a file's contents, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
