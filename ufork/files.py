"""Files written whole or not at all, and the checksums by which damage is found.

    content -> temporary file beside the target, of a random name -> (fsync) -> renamed to the target
    contents of a file -> XXH3 of 128 bits, in hexadecimal

A process that is killed leaves either the old file or the new one, and perhaps a temporary file `NAME.RANDOM.part`.
The checksum detects corruption, not tampering, in a twentieth of the time that SHA-256 takes.
https://github.com/Cyan4973/xxHash defines it; `xxhsum -H2` computes it too.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from xxhash import xxh3_128 as Checksum

from ufork.errors import StorageError
from ufork.redaction import has_credentials

__all__ = [
    "DRAFT_SUFFIX",
    "Checksum",
    "checksum_of",
    "draft_of",
    "make_folder",
    "named_errors",
    "open_regular",
    "parse_object",
    "read_at",
    "read_bounded",
    "read_object",
    "require_empty",
    "storage_errors",
    "sync",
    "whole_file",
    "whole_folder",
    "write_whole",
]

DRAFT_SUFFIX = ".part"
"""Suffix of the name of every temporary file and folder."""
MAX_OBJECT_BYTES = 16 * 2**20
"""Largest JSON file that `read_object` reads unless told otherwise: configs and the like have some kilobytes."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
"""First line of what Git LFS writes in place of a file that it has not fetched: in clones without `git lfs install`."""
_ANOTHER_FOLDER = "another folder"


def write_whole(path: Path, content: str | bytes, *, durable: bool = False, choose: str = _ANOTHER_FOLDER) -> None:
    """Writes a file whole or not at all; text as UTF-8. Only its owner may read text with credentials of a URL.

    Args:
        path: file to write or to replace.
        content: all of it.
        durable: whether file and name must survive a power loss, at the cost of two fsync calls.
        choose: remedy that the error names, "choose ...".

    Raises:
        StorageError: it cannot be written.
    """
    with whole_file(path, durable=durable, choose=choose) as file:
        if isinstance(content, str) and has_credentials(content):
            os.fchmod(file.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path, *, durable: bool = False, choose: str = _ANOTHER_FOLDER) -> Iterator[IO[bytes]]:
    """Opens a temporary file that becomes `path` when the block ends without an exception; arguments as `write_whole`.

    Raises:
        StorageError: it cannot be written.
    """
    with draft_of(path, durable=durable, choose=choose) as draft, open(draft, "xb") as file:  # x: follows no link
        yield file


@contextmanager
def draft_of(path: Path, *, durable: bool = False, choose: str = _ANOTHER_FOLDER) -> Iterator[Path]:
    """Yields a temporary name for a library that writes a file by its name; otherwise as `whole_file`.

    Raises:
        StorageError: it cannot be written.
    """
    # A process number is not unique: tasks of a job array run in containers, where they have the same one.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}{DRAFT_SUFFIX}")
    with storage_errors(path, choose=choose):
        try:
            yield draft
            if durable:
                sync(draft)
            draft.replace(path)
            if durable:
                sync(path.parent)
        finally:
            with suppress(OSError):  # a disk that fails here, too, must not hide why
                draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a new temporary folder that becomes `path` when the block ends without an exception.

    If another process has made `path` by then, its folder stays and this one is removed.

    Raises:
        StorageError: it cannot be written.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}{DRAFT_SUFFIX}")
    with storage_errors(path):
        draft.mkdir(parents=True)
        try:
            yield draft
            try:
                draft.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
            sync(path.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def require_empty(path: Path) -> None:
    """Refuses to write a folder where something is.

    Raises:
        StorageError: `path` exists and is no empty folder.
    """
    with storage_errors(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StorageError(f"{path}: not empty; choose another folder, or remove it first")


def make_folder(path: Path, *, choose: str = _ANOTHER_FOLDER) -> Path:
    """Makes a folder and those above it where they are missing; returns it.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(path, choose=choose):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def storage_errors(path: Path, *, choose: str = _ANOTHER_FOLDER) -> Iterator[None]:
    """Turns an OSError of the block into a StorageError that names `path` and the remedy "choose `choose`"."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); free space, permit writing, or choose {choose}"
        ) from error


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Gives an OSError of the block the name of the file, which those of reading an open file lack."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync(path: Path) -> None:
    """Makes a file's contents, or the names in a folder, survive a power loss.

    Raises:
        OSError: the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path | str) -> int:
    """Opens a regular file for reading; returns its descriptor, which the caller closes.

    Raises:
        OSError: the file is missing, unreadable, a folder, pipe or device, or was not fetched by Git LFS (ENODATA).
    """
    # Opening a pipe that no process writes to would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if os.pread(descriptor, len(_LFS_POINTER), 0) == _LFS_POINTER:
            raise OSError(errno.ENODATA, "a pointer of Git LFS; `git lfs pull` fetches the file", str(path))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_bounded(path: Path | str, max_bytes: int) -> bytes:
    """Reads a regular file that is not larger than `max_bytes`.

    Raises:
        OSError: as `open_regular`, or the file is too large (EFBIG).
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"{size} bytes, more than {max_bytes}", str(path))
        return read_at(descriptor, size, 0)  # a file object takes twice as long
    finally:
        os.close(descriptor)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Reads `size` bytes at `offset`, or up to the end of the file; a single call may return less than there is.

    Raises:
        OSError: the disk fails.
    """
    contents = os.pread(descriptor, size, offset)
    while len(contents) < size and (more := os.pread(descriptor, size - len(contents), offset + len(contents))):
        contents += more
    return contents


def read_object(path: Path, max_bytes: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        OSError: as `read_bounded`.
        ValueError: as `parse_object`.
    """
    return parse_object(read_bounded(path, max_bytes))


def parse_object(contents: bytes) -> dict[str, Any]:
    """Reads a JSON object from bytes of any origin.

    Raises:
        ValueError: they are not JSON, are nested too deeply, or are no object.
    """
    try:
        value = json.loads(contents)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def checksum_of(path: Path) -> str:
    """Checksum of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, Checksum).hexdigest()
