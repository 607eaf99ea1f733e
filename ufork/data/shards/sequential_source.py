"""Sources that can only be read from the start of a shard on, such as object stores without range reads.

    order: shards shuffled, samples shuffled within windows of a shard
    read(numbers) -> a reader that stands at the window, or one that skips to it -> the window -> Samples

webdataset reads the tars; which sample comes when follows from its number alone, as for any other source, so that
streams go on from a shard and a place in it, and nothing of readers or windows is part of a state.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np

from ufork.data.shards.sample import Sample
from ufork.data.shards.source import SamplePlace, ShardSource
from ufork.data.shards.storage import Storage
from ufork.errors import SampleError, ShardError
from ufork.vocabulary import Task

WINDOW_SAMPLES = 256
"""Samples of a shard that are held, and shuffled, at a time."""
MAX_READERS = 64
"""Open shards; at least as many as a process has lanes."""


class SequentialSource(ShardSource):
    """A source whose shards are read in order."""

    def __init__(self, folder: Path | str, task: Task) -> None:
        """As `ShardSource`."""
        super().__init__(folder, task)
        self._readers: OrderedDict[int, _Reader] = OrderedDict()
        self._next_reader = 0

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Every number once: a shard after the other, and so that a window is done with before the next one is read."""
        parts = []
        for shard in generator.permutation(len(self.entries)):
            first, end = self.first_number(shard), self.first_number(shard) + self.entries[shard].samples
            for start in range(first, end, WINDOW_SAMPLES):
                parts.append(start + generator.permutation(min(WINDOW_SAMPLES, end - start)))
        return np.concatenate(parts)

    def read(self, numbers: Sequence[int]) -> list[Sample | SampleError]:
        """As `ShardSource`; fast in the order of `order`, and right in any other."""
        return [self._read(shard, in_shard) for shard, in_shard in self.places(numbers)]

    def _read(self, shard: int, in_shard: int) -> Sample | SampleError:
        window, place = divmod(in_shard, WINDOW_SAMPLES)
        key, members = self._reader(shard, window).samples[place]
        return self.decoded(members, SamplePlace(self.storage.where(self.entries[shard].file), key))

    def _reader(self, shard: int, window: int) -> "_Reader":
        """One whose window it is, or next one; else a new one."""
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
        """A process that unpickles this opens its own readers."""
        return {**super().__getstate__(), "_readers": OrderedDict()}


class _Reader:
    """A shard that is being read, and the window of samples that was read last."""

    def __init__(self, storage: Storage, file: str, num_samples: int, shard: int) -> None:
        self.shard, self.window = shard, -1
        self.samples: list[tuple[str, dict[str, bytes]]] = []
        self._name, self._num_samples = storage.where(file), num_samples
        self._members = _keyed_members(storage, file)

    def go_to(self, window: int) -> None:
        while self.window < window:
            self.window += 1
            expected = min(WINDOW_SAMPLES, self._num_samples - self.window * WINDOW_SAMPLES)
            self.samples = list(islice(self._members, expected))
            if len(self.samples) < expected:
                raise ShardError(
                    f"{self._name}: ends after {self.window * WINDOW_SAMPLES + len(self.samples)} samples, the manifest"
                    f" says {self._num_samples}; prepare the data again, or bring the file back"
                )


def _keyed_members(storage: Storage, file: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and contents by extension of each sample, as webdataset groups them."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    where = storage.where(file)
    try:
        with storage.stream(file) as stream:
            members = ({**member, "__url__": where} for member in tar_file_iterator(stream))
            for sample in group_by_keys(members):
                fields = {name: content for name, content in sample.items() if not name.startswith("__")}
                yield sample["__key__"], fields
    except (OSError, TarError, ValueError, EOFError) as error:
        raise ShardError(f"{where}: cannot be read ({error}); prepare the data again, or bring the file back") from None
