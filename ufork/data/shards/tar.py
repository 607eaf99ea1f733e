"""The members of a tar: where their contents lie, read from the headers.

header block, contents padded to whole blocks, next header ..., two empty blocks -> TarMember of each member

Formats: POSIX ustar and pax (https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html), GNU tar's long names
and sparse files (https://www.gnu.org/software/tar/manual/html_node/Standard.html).
"""

from collections.abc import Generator, Iterator
from mmap import mmap
from typing import NamedTuple

from ufork.errors import ShardError

BLOCK_BYTES = 512
"""Unit of a tar: a header is one block, contents are padded to whole blocks."""
_REGULAR, _PAX, _GNU_NAME = b"0\0", b"x", b"L"
_SKIPPED = b"123456"
"""Links, devices and folders, which are skipped: they hold no contents of a sample."""
_OF_THE_NEXT_MEMBER = b"gK"
"""PAX defaults and long link targets, which nothing here needs."""
_GNU_SPARSE, _PAX_SPARSE = b"S", "GNU.sparse."
_MAX_NAME_BYTES, _MAX_DIGITS = 2**16, 20
"""Limits of the records that extend a header; more than any file system or size needs."""


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
