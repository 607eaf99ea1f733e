"""Finds ids that occur more than once, in memory that hardly grows with their number.

add(ids) -> hashes, divided among 64 files by their last bits -> repeated(): sorts one file at a time
         -> hashes that occur more than once -> ids_with: the ids that have them
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
from xxhash import xxh3_64_intdigest

from ufork.files import storage_errors

_NUM_FILES = 64
_BUFFERED_HASHES = 1 << 16
"""Hashes that are kept in memory before they are written."""


class UniqueIds:
    """Collects ids and finds those that may have been added twice; a context manager that removes its files."""

    def __init__(self, parent: Path | None = None) -> None:
        """Creates a temporary folder in `parent`, by default in the system's; it takes 8 bytes per id.

        Raises:
            StorageError: it cannot be created. The other methods raise it when they cannot write.
        """
        with storage_errors(parent or Path(tempfile.gettempdir())):
            self._folder = tempfile.TemporaryDirectory(prefix="ids-", dir=parent)
        self._buffer: list[int] = []

    def add(self, ids: Iterable[str]) -> None:
        """Adds ids."""
        self._buffer += map(_hashed, ids)
        if len(self._buffer) >= _BUFFERED_HASHES:
            self._write()

    def repeated(self) -> set[int]:
        """Returns the hashes that occur more than once.

        Different ids collide rarely: with 100 million ids, once in 3,000 runs.
        """
        self._write()
        found: set[int] = set()
        for path in Path(self._folder.name).iterdir():
            hashes = np.sort(np.fromfile(path, np.uint64))
            found.update(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        return found

    def _write(self) -> None:
        hashes = np.array(self._buffer, np.uint64)
        files = hashes % np.uint64(_NUM_FILES)
        folder = Path(self._folder.name)
        with storage_errors(folder):
            for number in np.unique(files).tolist():
                with open(folder / str(number), "ab") as file:
                    hashes[files == number].tofile(file)
        self._buffer = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()


def ids_with(hashes: set[int], ids: Iterable[str]) -> list[str]:
    """Returns the ids that occur more than once in `ids` and have one of `hashes`, sorted."""
    seen: set[str] = set()
    twice: set[str] = set()
    for name in ids:
        if _hashed(name) in hashes:
            (twice if name in seen else seen).add(name)
    return sorted(twice)


def _hashed(name: str) -> int:
    return xxh3_64_intdigest(name.encode())
