"""Whether any of very many ids comes twice, in memory that does not grow with their number.

add(id) -> its hash, into one of 64 files by its last bits -> repeated(): a file at a time, sorted -> hashes seen twice
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
from xxhash import xxh3_64_intdigest

from ufork.files import storage_errors

_NUM_FILES = 64
_HELD_HASHES = 1 << 16
"""In memory before they are written."""


class UniqueIds:
    """Takes in ids, and tells which may have come twice; a context manager that removes its files."""

    def __init__(self, parent: Path | None = None) -> None:
        """Makes a temporary folder in `parent`, or where the system has them: 8 bytes an id.

        Raises:
            StorageError: it cannot be made; nor, later, written.
        """
        with storage_errors(parent or Path(tempfile.gettempdir())):
            self._folder = tempfile.TemporaryDirectory(prefix="ids-", dir=parent)
        self._held: list[int] = []

    def add(self, ids: Iterable[str]) -> None:
        """Takes in `ids`."""
        self._held += map(_hashed, ids)
        if len(self._held) >= _HELD_HASHES:
            self._write()

    def repeated(self) -> set[int]:
        """Hashes that came more than once: of 100 million ids, one pair in 3,000 such runs does so by chance."""
        self._write()
        found: set[int] = set()
        for path in Path(self._folder.name).iterdir():
            hashes = np.sort(np.fromfile(path, np.uint64))
            found.update(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        return found

    def _write(self) -> None:
        hashes = np.array(self._held, np.uint64)
        files = hashes % np.uint64(_NUM_FILES)
        folder = Path(self._folder.name)
        with storage_errors(folder):
            for number in np.unique(files).tolist():
                with open(folder / str(number), "ab") as file:
                    hashes[files == number].tofile(file)
        self._held = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()


def ids_with(hashes: set[int], ids: Iterable[str]) -> list[str]:
    """Those of `ids` that come twice, found again by their hashes."""
    seen: set[str] = set()
    twice: set[str] = set()
    for name in ids:
        if _hashed(name) in hashes:
            (twice if name in seen else seen).add(name)
    return sorted(twice)


def _hashed(name: str) -> int:
    return xxh3_64_intdigest(name.encode())
