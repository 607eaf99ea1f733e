"""Offsets and sizes of the members of each sample of a tar, so that a sample can be read by its number.

    X.tar  -- scan of the headers -->  ShardIndex  -- save / load -->  X.tar.index.json

Reads any WebDataset tar: ours, webdataset's own (PAX headers), GNU tar's long names. Neighbouring members with the same
key are one sample; the key is the path up to the file name's first dot, and the rest is the member's extension.
"""

import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ufork.errors import ShardError
from ufork.files import open_regular, parse_object, read_bounded, write_whole

BLOCK_BYTES = 512
"""Unit of a tar: a header is one block, contents are padded to whole blocks."""

INDEX_VERSION = 1
_ABSENT = -1
MAX_INDEX_BYTES = 128 * 2**20
"""Largest index that is read; a million samples have some 60 MB."""
MAX_EXTENSIONS = 1000
"""Most extensions in a tar: each is a column as long as the tar has samples."""
_REGULAR, _PAX, _GNU_NAME = b"0\0", b"x", b"L"
_SKIPPED = b"123456"
"""Links, devices and folders, which are skipped: they hold no contents of a sample."""
_OF_THE_NEXT_MEMBER = b"gK"
"""PAX defaults and long link targets, which nothing here needs."""
_GNU_SPARSE, _PAX_SPARSE = b"S", "GNU.sparse."
_MAX_NAME_BYTES, _MAX_DIGITS = 2**16, 20
"""Limits of the records that extend a header; more than any file system or size needs."""


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


def is_header_of(header: bytes, key: str, extension: str, size: int) -> bool:
    """Whether a header states this size, and, if it has room for it, the name that makes this key and extension."""
    if len(header) < BLOCK_BYTES:  # the tar has been cut
        return False
    name = f"{key}.{extension}".encode(errors="replace")
    if header.startswith(name + b"\0") and header[124:135] == b"%011o" % size:
        return True  # nearly every header
    try:
        _check_header(header, "", 0)
        same_name = split_name(_ustar_name(header)) == (key, extension) or len(name) >= 100 or not name.isascii()
        return same_name and _number(header[124:136], "", 0) == size
    except ShardError:
        return False


def split_name(name: str) -> tuple[str, str]:
    """Splits a member's name, "a/b.Cls.txt" -> ("a/b", "cls.txt"); both are empty when it belongs to no sample."""
    folder, slash, file_name = name.rpartition("/")
    stem, dot, extension = file_name.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else ("", "")


def scan_members(data: mmap | memoryview, where: str) -> Iterator[tuple[str, int, int]]:
    """Yields name, offset of the contents and size of every regular file of the tar `where`.

    Raises:
        ShardError: the tar is truncated, damaged, or holds a member of an unknown type.
    """
    for member in tar_members(data, where):
        if member.type in _REGULAR:
            yield member.name.encode(errors="surrogateescape").decode(errors="replace"), member.offset, member.size
        elif member.type not in _SKIPPED:
            raise ShardError(
                f"{where}: byte {member.offset}: members of type {member.type!r} are not supported; use plain files"
            )


class TarMember(NamedTuple):
    """A member of a tar, as its header states it."""

    name: str
    """Bytes that are not UTF-8 are lone surrogates, as in `os.fsdecode`."""
    type: bytes
    """Type flag: b"0" for a file, b"S" for one that is stored as sparse in either of GNU tar's formats."""
    offset: int
    size: int


def tar_members(data: mmap | memoryview, where: str, start: int = 0) -> Generator[TarMember, None, int]:
    """Yields the members of a tar of any type, from the header at byte `start`; returns where its end mark begins.

    Raises:
        ShardError: the tar is truncated or damaged.
    """
    position = start
    extended: dict[str, str] = {}
    while (header := _block(data, position, where)).strip(b"\0"):
        size = int(extended.pop("size", "0")) or _number(header[124:136], where, position)
        _check_header(header, where, position)
        contents, kind = position + BLOCK_BYTES, header[156:157]
        if kind == _GNU_SPARSE:
            contents += _sparse_map_bytes(data, position, where)
        position = contents + -(-size // BLOCK_BYTES) * BLOCK_BYTES
        if contents + size > len(data):
            raise _truncated(data, where)
        if kind in (_PAX, _GNU_NAME) and size > _MAX_NAME_BYTES:
            raise ShardError(f"{where}: byte {position}: a member's name of {size} bytes; use a tar of shorter ones")
        if kind == _PAX:
            extended.update(_pax_records(bytes(data[contents : contents + size])))
        elif kind == _GNU_NAME:
            extended["path"] = _name(bytes(data[contents : contents + size]).rstrip(b"\0"))
        elif kind not in _OF_THE_NEXT_MEMBER:
            name = extended.get("GNU.sparse.name") or extended.get("path") or _ustar_name(header)
            is_sparse = any(key.startswith(_PAX_SPARSE) for key in extended)
            yield TarMember(name, _GNU_SPARSE if is_sparse else kind, contents, size)
            extended = {}
    return position


def _sparse_map_bytes(data: mmap | memoryview, position: int, where: str) -> int:
    """Returns the size of the blocks between the header of a sparse file at `position` and its contents."""
    num_blocks, is_continued = 0, _block(data, position, where)[482]
    while is_continued:
        num_blocks += 1
        is_continued = _block(data, position + num_blocks * BLOCK_BYTES, where)[504]
    return num_blocks * BLOCK_BYTES


def _block(data: mmap | memoryview, position: int, where: str) -> bytes:
    block = bytes(data[position : position + BLOCK_BYTES])
    if len(block) < BLOCK_BYTES:
        raise _truncated(data, where)
    return block


def _truncated(data: mmap | memoryview, where: str) -> ShardError:
    return ShardError(f"{where}: truncated at {len(data)} bytes, before the tar's end; prepare or copy it again")


def _check_header(header: bytes, where: str, position: int) -> None:
    stated = _number(header[148:156], where, position)
    if sum(header) - sum(header[148:156]) + 8 * 0x20 != stated:
        raise ShardError(f"{where}: byte {position} is no tar header (wrong checksum); prepare or copy the shard again")


def _number(octal: bytes, where: str, position: int) -> int:
    if octal[0] & 0x80:  # GNU tar's form of numbers with more than eleven octal digits
        return int.from_bytes(octal, "big") & ((1 << (8 * len(octal) - 1)) - 1)
    digits = octal.strip(b"\0 ") or b"0"
    if not digits.isdigit() or set(digits) & set(b"89"):
        raise ShardError(f"{where}: byte {position} is no tar header; prepare or copy the shard again")
    return int(digits, 8)


def _ustar_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _name(prefix + b"/" + name if prefix else name)


def _name(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def _pax_records(data: bytes) -> dict[str, str]:
    """Reads path, size and marks of sparse files from lines such as b"19 path=a/b.json", which state their length."""
    records = {}
    while data:
        length_text, _, _ = data.partition(b" ")
        if not _is_size(length_text) or not 0 < int(length_text) <= len(data):
            break
        length = int(length_text)
        name, _, value = data[len(length_text) + 1 : length - 1].partition(b"=")
        if name == b"path" or (name == b"size" and _is_size(value)) or name.startswith(_PAX_SPARSE.encode()):
            records[_name(name)] = _name(value)
        data = data[length:]
    return records


def _is_size(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) <= _MAX_DIGITS
