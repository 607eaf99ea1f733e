"""Finds the files of a collection, and reads image files that entries refer to without leaving the collection.

path from the user        -> matching_files -> files in a fixed order -> entries_of     trusted: symlinks are followed
image path of an entry    -> ImageFiles     -> bytes                                    not trusted
"""

import errno
import glob
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import is_clean
from ufork.errors import OUTAGES, InputError, SampleError
from ufork.files import open_regular, read_bounded

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp")
"""File name suffixes of the formats that ufork/vision decodes."""

UNREADABLE_FOLDER = "folder that cannot be read"
_MAC_FOLDER = "__MACOSX"
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
        InputError: no file was found, or a folder cannot be read.
    """
    if path.is_dir():
        files = []
        for name, reason in files_below(path, follow_links=True):
            if reason == UNREADABLE_FOLDER:
                raise InputError(f"{path / name}: this folder cannot be read; permit it, or move it out of {path}")
            if reason is None and name.lower().endswith(suffixes):
                files.append(path / name)
    elif path.exists():
        files = [path]
    else:
        files = [file for file in map(Path, glob.glob(str(path), recursive=True)) if not file.is_dir()]
    if not files:
        raise InputError(f"{path}: found no file {', '.join(suffixes)}; give a file, a folder or a pattern")
    common = path if path.is_dir() else os.path.commonpath([file.parent for file in files])
    return {file.relative_to(common).as_posix(): file for file in sorted(files)}


def files_below(root: Path, *, follow_links: bool) -> Iterator[tuple[str, str | None]]:
    """Yields the paths of all files below the folder `root`: those of a folder by name, then the folders in it.

    Yields a reason beside the path of a folder that is not entered: it cannot be read, or is a link, which is followed
    only if `follow_links`, and never to a folder that was entered before or contains the link. Memory grows with the
    number of folders and the files in one of them.
    """
    folders, entered = [""], set()
    while folders:
        folder = folders.pop()
        entered.add(real := os.path.realpath(root / folder))
        try:
            with os.scandir(root / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            yield folder, UNREADABLE_FOLDER
            continue
        below = []
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if not entry.is_dir():
                yield path, None
            elif not entry.is_symlink():
                below.append(path)
            elif not follow_links:
                yield path, "link to a folder; set input.follow_links=true if you trust it"
            elif (target := os.path.realpath(entry.path)) in entered or f"{real}{os.sep}".startswith(target + os.sep):
                yield path, "link to a folder that was read already"
            else:
                entered.add(target)
                below.append(path)
        folders += reversed(below)


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
            _require_file(path)
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


def _require_file(path: Path) -> None:
    try:
        os.close(open_regular(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file") from None


def check_hidden(path: str) -> None:
    """Raises SkippedInput for files that macOS and desktops add, such as ._x.jpg, which holds no image."""
    *folders, name = path.split("/")
    if name.startswith(".") or _MAC_FOLDER in folders:
        raise SkippedInput("hidden file, such as macOS and desktops add")


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
        """Reads the file `name`, a path relative to the folder, or else one of its other spellings.

        Raises:
            SampleError: the file is missing, not a regular file, too large, or outside the folder.
            OSError: no file can be read now.
        """
        path = os.path.join(self._folder, name)
        try:
            check_path(name)
            real = self._existing(name)
            if not self._follow_links and not real.startswith(self._folder + os.sep):
                raise SampleError(LINK_OUT, sample=path)
            return read_bounded(real, self._max_bytes)
        except SkippedInput as skip:
            raise SampleError(skip.reason, sample=path) from None
        except OSError as error:
            if error.errno in OUTAGES:
                raise
            reason = _REASONS.get(error.errno or 0, f"image cannot be read: {error.strerror}")
            raise SampleError(reason, detail=str(error.strerror), sample=path) from None
        except ValueError as error:
            raise SampleError("image cannot be read", detail=str(error), sample=path) from None

    def _existing(self, name: str) -> str:
        """Returns the real path of `name`, in the first of its spellings that exists."""
        paths = [os.path.realpath(os.path.join(self._folder, name))]
        if not os.path.exists(paths[0]):
            paths += [os.path.realpath(os.path.join(self._folder, spelling)) for spelling in _spellings(name)]
        return next(filter(os.path.exists, paths), paths[0])


def _spellings(name: str) -> Iterator[str]:
    """Yields the paths that may be meant by `name`, since collections keep them when they are moved.

    Paths are those of Windows or URLs, accents are composed or not, and a camera's .JPG becomes .jpg.
    """
    for path in _plain(name):
        stem, suffix = os.path.splitext(path)
        yield from (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
        yield from (stem + suffix.lower(), stem + suffix.upper())


def _plain(name: str) -> Iterator[str]:
    """Yields `name`, and what it is as a path of Windows or a URL."""
    yield name
    if "\\" in name or "%" in name or name.startswith("file:"):
        plain = name.replace("\\", "/")
        yield from (plain, unquote(plain, errors="surrogateescape").removeprefix("file://"))


def check_path(name: str) -> None:
    """Checks that `name` can be the path of a file below a folder, however it is spelled, without accessing the file.

    Raises:
        SkippedInput: `name` is empty, absolute, contains "..", or is not valid text.
    """
    if not name:
        raise SkippedInput("no image path")
    if not is_clean(name):
        raise SkippedInput("image path that is not text")
    if any(os.path.isabs(path) or ".." in path.split("/") for path in _plain(name)):
        raise SkippedInput("image path that leaves the collection")
