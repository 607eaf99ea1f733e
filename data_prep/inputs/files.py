"""Files of a collection: which there are, and reading one that an entry names without leaving the collection.

path of the user's        -> matching_files -> files in a lasting order -> entries_of     trusted: symlinks are followed
path that an entry names  -> ImageFiles     -> bytes                                      not trusted
"""

import glob
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import is_clean
from ufork.errors import InputError, SampleError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Of files that ufork/vision/images.py decodes."""

Entry = TypeVar("Entry")

_logger = logging.getLogger(__name__)


def matching_files(path: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The file `path`; or those with one of `suffixes` in and below the folder `path`; or those that a pattern matches.

    Returns:
        Paths in a lasting order, by what to call them: the same wherever the collection is moved.

    Raises:
        InputError: there is none.
    """
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.name.lower().endswith(suffixes) and file.is_file()]
    elif path.exists():
        files = [path]
    else:
        files = [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
    if not files:
        raise InputError(f"{path}: no file {', '.join(suffixes)} there; give a file, a folder or a pattern of such")
    common = path if path.is_dir() else os.path.commonpath([file.parent for file in files])
    return {file.relative_to(common).as_posix(): file for file in sorted(files)}


def entries_of(
    files: Mapping[str, Path], read: Callable[[Path], Iterator[Entry | SkippedInput]]
) -> Iterator[tuple[str, int, Entry | SkippedInput]]:
    """Yields file, number in the file and entry. Reading goes on behind a file that `read` raises InputError for.

    Raises:
        InputError: not one entry could be read.
    """
    faults, any_read = [], False
    for name, path in files.items():
        number = 0
        try:
            for entry in read(path):
                yield name, number, entry
                number += 1
        except InputError as fault:
            faults.append(fault)
            _logger.warning("left out from entry %d on: %s", number, fault)
            yield name, number, SkippedInput("file that cannot be read, or not to its end")
        any_read = any_read or number > 0
    if faults and not any_read:
        raise faults[0]


class ImageFiles:
    """Files below one folder, named by others' data."""

    def __init__(self, folder: Path, *, max_bytes: int, follow_links: bool) -> None:
        """Raises InputError when there is no `folder`."""
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; it should hold the images that the entries name")
        self._folder = os.path.realpath(folder)
        self._max_bytes = max_bytes
        self._follow_links = follow_links

    def read(self, name: str) -> bytes:
        """The contents of the file `name`, a path below the folder.

        Raises:
            SampleError: it is not there, not a plain file, too large, or outside the folder.
        """
        path = os.path.join(self._folder, name)
        try:
            check_path(name)
            real = os.path.realpath(path)
            if not self._follow_links and not real.startswith(self._folder + os.sep):
                raise SampleError(
                    f"{path}: a symlink that leads out of the folder; set follow_links=true if you trust it"
                )
            return _read_plain(real, self._max_bytes)
        except SkippedInput as skip:
            raise SampleError(f"{path}: {skip.reason}") from None
        except (OSError, ValueError) as error:
            raise SampleError(f"{path}: cannot be read ({error})") from None


def check_path(name: str) -> None:
    """Refuses what cannot be the path of a file below a folder, without looking there.

    Raises:
        SkippedInput: it is empty, absolute, leads upwards, or is not text.
    """
    if not name:
        raise SkippedInput("no image path")
    if not is_clean(name):
        raise SkippedInput("image path that is not text")
    if os.path.isabs(name) or ".." in name.split("/"):
        raise SkippedInput("image path that leaves the collection")


def _read_plain(path: str, max_bytes: int) -> bytes:
    # A pipe that nobody writes to would block for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SampleError(f"{path}: not a plain file")
        if status.st_size > max_bytes:
            raise SampleError(f"{path}: {status.st_size} bytes, more than input.max_image_mb allows")
        return os.read(descriptor, status.st_size)  # by a file object it takes twice as long
    finally:
        os.close(descriptor)
