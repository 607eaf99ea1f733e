"""The manifest of a finished source folder. It is written last, so that a folder that has one is complete.

folder/manifest.json  <->  Manifest: shards with their sizes and checksums, licence, recipe
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import NonNegativeInt, StringConstraints, TypeAdapter, ValidationError

from ufork.data.shards.storage import LocalStorage, Storage
from ufork.data.shards.tar import BLOCK_BYTES
from ufork.errors import ShardError
from ufork.files import checksum_of, parse_object, write_whole
from ufork.vocabulary import Task

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 2
MAX_MANIFEST_BYTES = 64 * 2**20
"""Largest manifest that is read; one of 300,000 shards is smaller."""
_REMEDY = "prepare the data again"
_FileName = Annotated[str, StringConstraints(pattern=r"^[^/\x00]+\.tar$")]


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar of a source."""

    file: _FileName
    """Name within the source folder."""
    task: Task
    samples: NonNegativeInt
    bytes: NonNegativeInt
    checksum: str
    """XXH3 of its contents, as `ufork.files.checksum_of` returns it."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ShardEntry":
        """Makes an entry from the values that `dataclasses.asdict` returned, read from JSON.

        Raises:
            ValueError: the task is unknown.
            KeyError: there is no task.
            TypeError: another value is missing or unknown.
        """
        return cls(**{**values, "task": Task(values["task"])})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a finished source folder."""

    source: str
    split: str
    licence: str
    attribution: str
    recipe: str
    """Digest of everything that the shards were made from; shards with an equal digest are not made again."""
    shards: tuple[ShardEntry, ...]
    skipped: dict[str, NonNegativeInt] = field(default_factory=dict)
    """Number of skipped inputs, by reason."""
    details: dict[str, Any] = field(default_factory=dict)
    """Details that depend on the source: its vocabulary, the codec of its codes."""
    version: int = MANIFEST_VERSION

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads the manifest in `folder`.

        Raises:
            ShardError: there is none, it is not one of this version, or its values cannot be those of shards.
        """
        return cls.read(LocalStorage(folder))

    @classmethod
    def read(cls, storage: Storage) -> "Manifest":
        """Reads the manifest of a source in any storage; raises as `load`."""
        where, contents = storage.where(MANIFEST_FILE), storage.contents(MANIFEST_FILE, MAX_MANIFEST_BYTES)
        try:
            version = parse_object(contents).get("version")
            if version != MANIFEST_VERSION:
                raise ShardError(f"{where}: version {version!r:.40}, expected {MANIFEST_VERSION}; {_REMEDY}")
            manifest = _MANIFEST.validate_json(contents, strict=True)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            key = ".".join(map(str, first["loc"]))
            raise ShardError(f"{where}: not a manifest of ufork's ({key}: {first['msg']}); {_REMEDY}") from None
        except ValueError as error:
            raise ShardError(f"{where}: not a manifest of ufork's ({error}); {_REMEDY}") from None
        manifest._require_complete(storage)
        return manifest

    def _require_complete(self, storage: Storage) -> None:
        """Raises ShardError unless each shard of the folder is listed once, with no more samples than fit into it."""
        where, path = storage.where(MANIFEST_FILE), storage.local_path(MANIFEST_FILE)
        listed = {entry.file for entry in self.shards}
        if len(listed) < len(self.shards):
            raise ShardError(f"{where}: lists the same shard twice; {_REMEDY}")
        for entry in self.shards:
            if entry.samples * BLOCK_BYTES > entry.bytes:
                raise ShardError(f"{where}: {entry.file}: {entry.samples} samples in {entry.bytes} bytes; {_REMEDY}")
        found = {shard.name for task in Task for shard in path.parent.glob(shard_pattern(task))} if path else set()
        if unlisted := sorted(found - listed):
            raise ShardError(f"{where}: does not list {', '.join(unlisted[:3])}; remove these shards, or {_REMEDY}")

    def save(self, folder: Path) -> None:
        """Writes the manifest into `folder`, whole or not at all.

        Raises:
            StorageError: the folder cannot be written.
        """
        write_whole(folder / MANIFEST_FILE, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    def num_samples(self, task: Task) -> int:
        """Number of samples of `task` over all shards."""
        return sum(entry.samples for entry in self.shards if entry.task == task)

    def check(self, folder: Path, *, deep: bool = False) -> None:
        """Compares the shards in `folder` with the manifest: sizes, and checksums when `deep`.

        Raises:
            ShardError: names the first shard that is missing or differs.
        """
        storage = LocalStorage(folder)
        for entry in self.shards:
            check_size(storage, entry)
            path = storage.local_path(entry.file)
            if deep and (found := checksum_of(path)) != entry.checksum:
                raise ShardError(f"{path}: its checksum is {found}, the manifest says {entry.checksum}; {_REMEDY}")


_MANIFEST = TypeAdapter(Manifest)


def shard_pattern(task: Task) -> str:
    """Pattern of the names of the shards of `task` that ufork writes."""
    return f"{task}-[0-9][0-9][0-9][0-9][0-9]*.tar"


def check_size(storage: Storage, entry: ShardEntry) -> None:
    """Compares the size of a shard with the manifest's.

    Raises:
        ShardError: the shard is missing, or its size differs.
    """
    found, where = storage.size(entry.file), storage.where(entry.file)
    if found != entry.bytes:
        kind = "truncated" if found < entry.bytes else "changed"
        raise ShardError(f"{where}: {kind}: {found} bytes, the manifest says {entry.bytes}; {_REMEDY}")
