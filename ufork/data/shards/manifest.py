"""The manifest of a finished source folder. It is written last, so that a folder that has one is complete.

folder/manifest.json  <->  Manifest: shards with their sizes and checksums, licence, recipe
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ufork.data.shards.storage import LocalStorage, Storage
from ufork.errors import ShardError
from ufork.files import checksum_of, write_whole
from ufork.vocabulary import Task

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 2
_REMEDY = "prepare the data again"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar of a source."""

    file: str
    """Name within the source folder."""
    task: Task
    samples: int
    bytes: int
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
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of skipped inputs, by reason."""
    details: dict[str, Any] = field(default_factory=dict)
    """Details that depend on the source: its vocabulary, the codec of its codes."""
    version: int = MANIFEST_VERSION

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads the manifest in `folder`.

        Raises:
            ShardError: there is none, or it is not one of this version.
        """
        return cls.read(LocalStorage(folder))

    @classmethod
    def read(cls, storage: Storage) -> "Manifest":
        """Reads the manifest of a source in any storage; raises as `load`."""
        where, contents = storage.where(MANIFEST_FILE), storage.contents(MANIFEST_FILE)
        try:
            values = json.loads(contents)
            if values["version"] != MANIFEST_VERSION:
                raise ShardError(f"{where}: version {values['version']}, expected {MANIFEST_VERSION}; {_REMEDY}")
            values["shards"] = tuple(map(ShardEntry.from_dict, values["shards"]))
            return cls(**{name.name: values[name.name] for name in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{where}: not a manifest of ufork's ({error!r}); {_REMEDY}") from None

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


def check_size(storage: Storage, entry: ShardEntry) -> None:
    """Compares the size of a shard with the manifest's.

    Raises:
        ShardError: the shard is missing, or its size differs.
    """
    found, where = storage.size(entry.file), storage.where(entry.file)
    if found != entry.bytes:
        kind = "truncated" if found < entry.bytes else "changed"
        raise ShardError(f"{where}: {kind}: {found} bytes, the manifest says {entry.bytes}; {_REMEDY}")
