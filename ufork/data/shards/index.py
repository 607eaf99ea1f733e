"""Offsets and sizes of the members of each sample of a tar, so that a sample can be read by its number.

    X.tar  -- scan of the headers -->  ShardIndex  -- save / load -->  X.tar.index.json

Reads any WebDataset tar: ours, webdataset's own (PAX headers), GNU tar's long names. Neighbouring members with the same
key are one sample; the key is the path up to the file name's first dot, and the rest is the member's extension.
"""

import json
import os
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np

from ufork.data.shards.tar import BLOCK_BYTES, scan_members, split_name
from ufork.errors import ShardError
from ufork.files import open_regular, parse_object, read_bounded, write_whole

INDEX_VERSION = 1
_ABSENT = -1
MAX_INDEX_BYTES = 128 * 2**20
"""Largest index that is read; a million samples have some 60 MB."""
MAX_EXTENSIONS = 1000
"""Most extensions in a tar: each is a column as long as the tar has samples."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Columns over the N samples of one tar."""

    keys: tuple[str, ...]
    """N keys."""
    offsets: dict[str, np.ndarray]
    """Extension -> int64 [N], offset of the contents in the tar; -1 where the sample has no such member."""
    sizes: dict[str, np.ndarray]
    """Extension -> int64 [N], bytes of the contents; -1 where the sample has no such member."""
    tar_bytes: int
    """Size of the indexed tar; a tar of another size has changed since."""

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def build(cls, tar_path: Path) -> "ShardIndex":
        """Scans the headers of the tar at `tar_path`.

        Raises:
            ShardError: the tar is missing, truncated, damaged, or holds two members of the same name in one sample.
        """
        try:
            with open(open_regular(tar_path), "rb") as file:
                tar_bytes = os.fstat(file.fileno()).st_size
                with mmap(file.fileno(), 0, access=ACCESS_READ) if tar_bytes else memoryview(b"") as data:
                    return cls.scan(data, str(tar_path))
        except OSError as error:
            raise ShardError(f"{tar_path}: cannot be read ({error.strerror}); prepare the data again") from None

    @classmethod
    def scan(cls, data: mmap | memoryview, where: str) -> "ShardIndex":
        """Scans the headers of the tar `where` with the contents `data`; raises as `build`."""
        builder = IndexBuilder()
        for name, offset, size in scan_members(data, where):
            builder.add(name, offset, size, where=where)
        return builder.finish(len(data))

    @classmethod
    def load(cls, tar_path: Path) -> "ShardIndex | None":
        """Reads the saved index of the tar at `tar_path`; None when there is none or `parse` refuses it."""
        try:
            return cls.parse(read_bounded(index_path(tar_path), MAX_INDEX_BYTES), tar_bytes=tar_path.stat().st_size)
        except OSError:
            return None

    @classmethod
    def parse(cls, contents: bytes, *, tar_bytes: int) -> "ShardIndex | None":
        """Reads a saved index; None when it is damaged, of another version, or not of a tar of `tar_bytes`."""
        try:
            columns = parse_object(contents)
            if columns["version"] != INDEX_VERSION or columns["tar_bytes"] != tar_bytes:
                return None
            index = cls(
                keys=tuple(columns["keys"]),
                offsets={name: np.array(column, np.int64) for name, column in columns["offsets"].items()},
                sizes={name: np.array(column, np.int64) for name, column in columns["sizes"].items()},
                tar_bytes=tar_bytes,
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None
        return index if index._is_of_a_tar() else None

    def _is_of_a_tar(self) -> bool:
        """Whether every sample has members, and they lie one behind the other in the order of the samples."""
        columns = [*self.offsets.values(), *self.sizes.values()]
        if self.offsets.keys() != self.sizes.keys() or any(column.shape != (len(self),) for column in columns):
            return False
        if not columns or not all(isinstance(key, str) for key in self.keys):
            return not self.keys
        offsets_MN = np.stack(list(self.offsets.values()))
        sizes_MN = np.stack([self.sizes[name] for name in self.offsets])
        is_there_MN = offsets_MN != _ABSENT
        if not (is_there_MN == (sizes_MN != _ABSENT)).all() or not is_there_MN.any(axis=0).all():
            return False
        offsets, sizes, samples = offsets_MN[is_there_MN], sizes_MN[is_there_MN], np.nonzero(is_there_MN)[1]
        if min(offsets.min(), sizes.min()) < 0 or max(offsets.max(), sizes.max()) > self.tar_bytes:
            return False
        order = np.argsort(offsets)
        offsets, ends = offsets[order], (offsets + -(-sizes // BLOCK_BYTES) * BLOCK_BYTES)[order]
        starts_at_a_block = not (offsets % BLOCK_BYTES).any() and offsets[0] >= BLOCK_BYTES
        is_in_order = (np.diff(samples[order]) >= 0).all() and (ends[:-1] + BLOCK_BYTES <= offsets[1:]).all()
        return bool(starts_at_a_block and is_in_order and ends[-1] <= self.tar_bytes)

    def save(self, tar_path: Path) -> None:
        """Writes the index beside the tar at `tar_path`, whole or not at all.

        Raises:
            StorageError: the folder cannot be written.
        """
        columns = {
            "version": INDEX_VERSION,
            "tar_bytes": self.tar_bytes,
            "keys": self.keys,
            "offsets": {name: column.tolist() for name, column in self.offsets.items()},
            "sizes": {name: column.tolist() for name, column in self.sizes.items()},
        }
        # Ranks that find no index build it at the same time: each renames its own file over the same contents.
        write_whole(index_path(tar_path), json.dumps(columns, separators=(",", ":")))


def index_path(tar_path: Path) -> Path:
    """`X.tar` -> `X.tar.index.json`."""
    return tar_path.with_name(f"{tar_path.name}.index.json")


class IndexBuilder:
    """Groups members, in the order of the tar, into samples."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._offsets: dict[str, list[int]] = {}
        self._sizes: dict[str, list[int]] = {}

    def add(self, name: str, offset: int, size: int, *, where: str) -> None:
        """Adds the member `name`, whose `size` bytes are at `offset`; ignores names without an extension.

        Raises:
            ShardError: the sample already has that member.
        """
        key, extension = split_name(name)
        if key:
            self.add_member(key, extension, offset, size, where=where)

    def add_member(self, key: str, extension: str, offset: int, size: int, *, where: object) -> None:
        """Adds a member by its key and extension; raises as `add`."""
        if not self._keys or self._keys[-1] != key:
            self._keys.append(key)
        offsets, sizes = self._offsets.setdefault(extension, []), self._sizes.setdefault(extension, [])
        if len(self._offsets) > MAX_EXTENSIONS:
            raise ShardError(f"{where}: more than {MAX_EXTENSIONS} different extensions; is this a shard of ufork's?")
        if len(offsets) == len(self._keys):
            raise ShardError(f"{where}: sample {key!r} has two members .{extension}; make the shard again")
        if missing := len(self._keys) - 1 - len(offsets):
            offsets.extend([_ABSENT] * missing)
            sizes.extend([_ABSENT] * missing)
        offsets.append(offset)
        sizes.append(size)

    def finish(self, tar_bytes: int) -> ShardIndex:
        """Returns the index of all members added; `tar_bytes` is the size of the whole tar."""

        def columns(lists: dict[str, list[int]]) -> dict[str, np.ndarray]:
            return {
                name: np.array(values + [_ABSENT] * (len(self._keys) - len(values)), np.int64)
                for name, values in lists.items()
            }

        return ShardIndex(
            keys=tuple(self._keys), offsets=columns(self._offsets), sizes=columns(self._sizes), tar_bytes=tar_bytes
        )
