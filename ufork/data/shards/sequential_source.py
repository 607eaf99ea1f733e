"""Sources whose shards can only be read from their start, such as object stores without range reads.

    order: shards shuffled, samples shuffled within windows of a shard
    read(numbers) -> a reader at that window, or one that skips to it -> the window -> Samples

webdataset groups the members of a tar into samples. The order follows from the samples' numbers alone, as in any other
source, so that a stream resumes from a shard and a position in it, and no reader or window is part of the stream's
state.
"""

import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np

from ufork.data.shards.sample import Sample
from ufork.data.shards.source import SampleLocation, ShardSource
from ufork.data.shards.storage import Storage
from ufork.errors import SampleError, ShardError
from ufork.vocabulary import Task

WINDOW_SAMPLES = 256
"""Samples of a shard that are kept in memory, and shuffled, at a time."""
_REMEDY = "prepare the data again, or restore the file"
MAX_READERS = 64
"""Limit of open shards; at least as many as a process has lanes."""


class SequentialSource(ShardSource):
    """A source whose shards are read in order."""

    def __init__(self, folder: Path | str, task: Task) -> None:
        """Opens the source; see `ShardSource`."""
        super().__init__(folder, task)
        self._readers: OrderedDict[int, _Reader] = OrderedDict()
        self._next_reader = 0

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Returns every number once, shard by shard and window by window, so that each window is read once."""
        windows = []
        for shard in generator.permutation(len(self.entries)):
            first, end = self.first_number(shard), self.first_number(shard) + self.entries[shard].samples
            for start in range(first, end, WINDOW_SAMPLES):
                windows.append(start + generator.permutation(min(WINDOW_SAMPLES, end - start)))
        return np.concatenate(windows)

    def read(self, numbers: Sequence[int]) -> list[Sample | SampleError]:
        """Reads samples as `ShardSource` does; fast in the order of `order`, slow but correct in any other."""
        return [self._read(shard, in_shard) for shard, in_shard in self.locate(numbers)]

    def _read(self, shard: int, in_shard: int) -> Sample | SampleError:
        window, in_window = divmod(in_shard, WINDOW_SAMPLES)
        key, members = self._reader(shard, window).samples[in_window]
        return self.decode(members, SampleLocation(self.storage.where(self.entries[shard].file), key))

    def _reader(self, shard: int, window: int) -> "_Reader":
        """Returns a reader that is at the window, or one window before it; else a new one."""
        for behind in (0, 1):
            for name, reader in self._readers.items():
                if (reader.shard, reader.window + behind) == (shard, window):
                    self._readers.move_to_end(name)
                    reader.go_to(window)
                    return reader
        entry = self.entries[shard]
        reader = _Reader(self.storage, entry.file, entry.samples, shard)
        reader.go_to(window)
        self._readers[self._next_reader] = reader
        self._next_reader += 1
        if len(self._readers) > MAX_READERS:
            self._readers.popitem(last=False)
        return reader

    def __getstate__(self) -> dict[str, Any]:
        """Omits the readers; a process that unpickles this opens its own."""
        return {**super().__getstate__(), "_readers": OrderedDict()}


class _Reader:
    """An open shard and the window of samples that was read last."""

    def __init__(self, storage: Storage, file: str, num_samples: int, shard: int) -> None:
        self.shard, self.window = shard, -1
        self.samples: list[tuple[str, dict[str, bytes]]] = []
        self._name, self._num_samples = storage.where(file), num_samples
        self._members = _keyed_members(storage, file)

    def go_to(self, window: int) -> None:
        while self.window < window:
            self.window += 1
            before = self.window * WINDOW_SAMPLES
            expected = min(WINDOW_SAMPLES, self._num_samples - before)
            self.samples = list(islice(self._members, expected))
            if len(self.samples) < expected:
                raise self._miscounted(f"ends after {before + len(self.samples)} samples")
            if before + expected == self._num_samples and next(self._members, None) is not None:
                raise self._miscounted(f"goes on after {self._num_samples} samples")

    def _miscounted(self, found: str) -> ShardError:
        return ShardError(f"{self._name}: {found}, the manifest says {self._num_samples}; {_REMEDY}")


def _keyed_members(storage: Storage, file: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields key and contents by extension of each sample, as webdataset groups them."""
    from webdataset.tariterators import group_by_keys

    where = storage.where(file)
    try:
        # Not "r|*" as in webdataset's tar_file_iterator, which would decompress what is no tar.
        with storage.stream(file) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for sample in group_by_keys(_members(tar, where)):
                fields = {name: content for name, content in sample.items() if not name.startswith("__")}
                yield sample["__key__"], fields
    except (OSError, TarError, ValueError, EOFError) as error:
        raise ShardError(f"{where}: cannot be read ({error}); {_REMEDY}") from None


def _members(tar: tarfile.TarFile, where: str) -> Iterator[dict[str, Any]]:
    """Yields the regular files of a tar in the form that webdataset's `group_by_keys` takes."""
    for member in tar:
        if member.isreg() and (contents := tar.extractfile(member)):
            yield {"fname": member.name, "data": contents.read(), "__url__": where}
        tar.members = []  # type: ignore[attr-defined]  # it would keep the header of every member
