"""Writes a source folder: shards first, the manifest last.

    start_source(folder)  ->  ShardWriter per task  ->  finish_source(folder, writers' entries)  ->  Manifest

Tars are laid out by hand (USTAR headers, time 0, no owner), with the index counted along: the bytes depend on the
samples alone, and webdataset reads them at full speed (its own writer's fractional times add a header to every member).
"""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ufork.data.shards.index import IndexBuilder
from ufork.data.shards.manifest import MANIFEST_FILE, Manifest, ShardEntry, shard_pattern
from ufork.data.shards.sample import Sample
from ufork.data.shards.tar import BLOCK_BYTES
from ufork.errors import ShardError
from ufork.files import Checksum, draft_of, make_folder, storage_errors, write_whole
from ufork.vocabulary import Task

ATTRIBUTION_FILE = "ATTRIBUTION.md"
_TAR_END = b"\0" * (2 * BLOCK_BYTES)
_MODE_AND_OWNER = b"0000644\0" + b"0000000\0" * 2
_TIME = b"\0" + b"%011o\0" % 0
_KIND = b"\0 " + b"0".ljust(101, b"\0") + b"ustar\x0000".ljust(255, b"\0")
_CONSTANT_SUM = sum(_MODE_AND_OWNER + _TIME + _KIND) - sum(b"\0 ") + 8 * ord(" ")
"""Sum of a header's bytes besides name and size; the checksum field itself counts as blanks."""

_BUFFER_BYTES = 1 << 18
_CHUNK_BYTES = 1 << 13
"""Contents of at least this size are written without being copied into the buffer."""


def finished_source(folder: Path, recipe: str) -> Manifest | None:
    """Returns the manifest in `folder` if it is of the same `recipe` and all shards exist, else None."""
    try:
        manifest = Manifest.load(folder)
        manifest.check(folder)
    except ShardError:
        return None
    return manifest if manifest.recipe == recipe else None


def start_source(folder: Path) -> None:
    """Makes `folder`, and removes the files of an unfinished or outdated preparation.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    with storage_errors(make_folder(folder)):
        # The manifest goes first: a folder that has one must be whole.
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        for task in Task:
            for stale in sorted(folder.glob(f"{shard_pattern(task)}*")):
                stale.unlink()


def finish_source(
    folder: Path,
    *,
    source: str,
    split: str,
    licence: str,
    attribution: str,
    recipe: str,
    entries: Iterable[ShardEntry],
    skipped: dict[str, int],
    details: dict[str, Any],
) -> Manifest:
    """Writes the manifest, which declares the folder finished.

    Raises:
        StorageError: it cannot be written.
    """
    manifest = Manifest(
        source=source,
        split=split,
        licence=licence,
        attribution=attribution,
        recipe=recipe,
        shards=tuple(entries),
        skipped=dict(sorted(skipped.items())),
        details=details,
    )
    manifest.save(folder)
    return manifest


def write_attribution(folder: Path, manifests: Iterable[Manifest]) -> None:
    """Writes whose art the shards hold: each attribution once, with the sources that it applies to.

    Raises:
        StorageError: it cannot be written.
    """
    sources: dict[tuple[str, str], list[str]] = {}
    for manifest in manifests:
        names = sources.setdefault((manifest.attribution, manifest.licence), [])
        if manifest.source not in names:
            names.append(manifest.source)
    text = "# Whose work these shards hold\n"
    for (attribution, licence), names in sources.items():
        text += f"\n## {', '.join(names)} ({licence})\n\n{attribution}\n"
    write_whole(make_folder(folder) / ATTRIBUTION_FILE, text)


class ShardWriter:
    """Writes the samples of one task as `{task}-00000.tar`, ..., each with its index; a context manager.

    A shard appears under its name when it is complete. `entries` lists the finished shards.
    """

    def __init__(
        self,
        folder: Path,
        *,
        source: str,
        split: str,
        task: Task,
        shard_samples: int,
        first_shard: int = 0,
        first_key: int = 0,
    ) -> None:
        """Writes nothing yet.

        Args:
            folder: an existing folder, prepared by `start_source`.
            source: name of the source, for the manifest.
            split: name of the split, for the manifest.
            task: task of all samples.
            shard_samples: samples per shard; the last shard may have fewer.
            first_shard: number of the first shard, if other writers write those before it.
            first_key: number of the first sample, which names its members.
        """
        self.folder, self.source, self.split, self.task = Path(folder), source, split, Task(task)
        self.shard_samples = shard_samples
        self.entries: list[ShardEntry] = []
        self._next_shard, self._next_key = first_shard, first_key
        self._chunks: list[bytes] = []
        self._small = bytearray()  # bytes after the last chunk: copying is faster than many small writes and sums
        self._num_bytes = 0
        self._in_shard = 0
        self._index = IndexBuilder()

    def write(self, sample: Sample) -> None:
        """Appends `sample`.

        Raises:
            StorageError: the shard that it completes cannot be written.
        """
        stray = f"{sample.id} is of {sample.source}, {sample.task}: not for {self.source}/{self.split}, {self.task}"
        assert (sample.source, sample.task) == (self.source, self.task), stray
        for extension, contents in sample.to_members().items():
            self._append(f"{self._next_key:09d}", extension, contents)
        self._next_key += 1
        self._in_shard += 1
        if self._in_shard == self.shard_samples:
            self._finish_shard()

    def _append(self, key: str, extension: str, contents: bytes) -> None:
        size = len(contents)
        self._index.add_member(key, extension, self._num_bytes + BLOCK_BYTES, size, where=self.folder)
        padding = -size % BLOCK_BYTES
        self._small += _ustar_header(f"{key}.{extension}", size)
        if size < _CHUNK_BYTES:
            self._small += contents
        else:
            self._chunks += (bytes(self._small), contents)
            self._small.clear()
        self._small += _TAR_END[:padding]
        self._num_bytes += BLOCK_BYTES + size + padding

    def _finish_shard(self) -> None:
        self._chunks.append(bytes(self._small) + _TAR_END)
        self._num_bytes += len(_TAR_END)
        path = self.folder / f"{self.task}-{self._next_shard:05d}.tar"
        # Another process may be at the same shard: one that is about to end, when its job was started anew.
        with draft_of(path) as draft:
            checksum = _write_summed(draft, self._chunks)
            self._index.finish(self._num_bytes).save(path)
        self.entries.append(
            ShardEntry(file=path.name, task=self.task, samples=self._in_shard, bytes=self._num_bytes, checksum=checksum)
        )
        self._next_shard += 1
        self._chunks, self._num_bytes, self._in_shard, self._index = [], 0, 0, IndexBuilder()
        self._small.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._in_shard:
            self._finish_shard()


def _write_summed(path: Path, chunks: list[bytes]) -> str:
    """Writes the chunks in turn, since joining them would take their memory twice; returns the checksum."""
    checksum = Checksum()
    with open(path, "xb", buffering=_BUFFER_BYTES) as file:
        for chunk in chunks:
            checksum.update(chunk)
            file.write(chunk)
    return checksum.hexdigest()


def _ustar_header(name: str, size: int) -> bytes:
    """Header of a regular file, readable by all, owned by root, with time 0."""
    name_bytes, size_bytes = name.encode(), b"%011o" % size
    assert len(name_bytes) <= 100 and size < 8**11, (name, size)
    checksum = _CONSTANT_SUM + sum(name_bytes) + sum(size_bytes)
    return b"".join((name_bytes.ljust(100, b"\0"), _MODE_AND_OWNER, size_bytes, _TIME, b"%06o" % checksum, _KIND))
