"""Finds the files of a collection, and reads image files that entries refer to without leaving the collection.

path from the user        -> matching_files -> files in a fixed order -> entries_of     trusted: symlinks are followed
image path of an entry    -> ImageFiles     -> bytes                                    not trusted
"""

import errno
import glob
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import is_clean
from ufork.errors import InputError, SampleError
from ufork.files import read_bounded

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""File name suffixes of the formats that ufork/vision decodes."""

TOO_LARGE = "image larger than input.max_image_mb"
LINK_OUT = "image behind a link out of the image folder; set input.follow_links=true if you trust it"
_REASONS = {
    errno.EFBIG: TOO_LARGE,
    errno.ENOENT: "no such image file; paths are relative to the image folder (input.images)",
    errno.EINVAL: "image that is no regular file",
}

Entry = TypeVar("Entry")

_logger = logging.getLogger(__name__)


def matching_files(path: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Finds files: the file `path`, those with one of `suffixes` below the folder `path`, or matches of a pattern.

    Returns:
        Paths in a fixed order, by name. Names do not change when the collection is moved.

    Raises:
        InputError: no file was found.
    """
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.name.lower().endswith(suffixes) and file.is_file()]
    elif path.exists():
        files = [path]
    else:
        files = [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
    if not files:
        raise InputError(f"{path}: found no file {', '.join(suffixes)}; give a file, a folder or a pattern")
    common = path if path.is_dir() else os.path.commonpath([file.parent for file in files])
    return {file.relative_to(common).as_posix(): file for file in sorted(files)}


def entries_of(
    files: Mapping[str, Path], read: Callable[[Path], Iterator[Entry | SkippedInput]]
) -> Iterator[tuple[str, int, Entry | SkippedInput]]:
    """Yields file name, number of the entry in the file, and entry. Files that cannot be read are logged and skipped.

    Raises:
        InputError: no file contained a readable entry; this is the error of the first file.
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
            _logger.warning("skipped from entry %d on: %s", number, fault)
            yield name, number, SkippedInput("file that cannot be read, or not to its end")
        any_read = any_read or number > 0
    if faults and not any_read:
        raise faults[0]


class ImageFiles:
    """Reads image files below one folder. Their paths come from the collection and are not trusted."""

    def __init__(self, folder: Path, *, max_bytes: int, follow_links: bool) -> None:
        """Raises InputError if `folder` does not exist."""
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected the folder that image paths are relative to")
        self._folder = os.path.realpath(folder)
        self._max_bytes = max_bytes
        self._follow_links = follow_links

    def read(self, name: str) -> bytes:
        """Reads the file `name`, a path relative to the folder.

        Raises:
            SampleError: the file is missing, not a regular file, too large, or outside the folder.
        """
        path = os.path.join(self._folder, name)
        try:
            check_path(name)
            real = os.path.realpath(path)
            if not self._follow_links and not real.startswith(self._folder + os.sep):
                raise SampleError(LINK_OUT, sample=path)
            return read_bounded(real, self._max_bytes)
        except SkippedInput as skip:
            raise SampleError(skip.reason, sample=path) from None
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, f"image cannot be read: {error.strerror}")
            raise SampleError(reason, detail=str(error.strerror), sample=path) from None
        except ValueError as error:
            raise SampleError("image cannot be read", detail=str(error), sample=path) from None


def check_path(name: str) -> None:
    """Checks that `name` can be the path of a file below a folder, without accessing the file.

    Raises:
        SkippedInput: `name` is empty, absolute, contains "..", or is not valid text.
    """
    if not name:
        raise SkippedInput("no image path")
    if not is_clean(name):
        raise SkippedInput("image path that is not text")
    if os.path.isabs(name) or ".." in name.split("/"):
        raise SkippedInput("image path that leaves the collection")
