"""Finds duplicates among all records before any shard is written.

    record index, in chunks  ->  filters, fingerprint  ->  .work/fingerprints/00012.npy, one element per record
    all chunks               ->  duplicates_of         ->  .work/duplicates.npy, one byte per record

Chunks are divided among processes and array tasks; the second step runs in one process. Records that the filters drop
are ignored, so no record is dropped as the duplicate of a dropped one.
"""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.filtering.duplicates import EXACT, FINGERPRINT_DTYPE, NEAR, duplicates_of, fingerprint
from data_prep.filtering.filters import text_of
from data_prep.filtering.record_filter import RecordFilter
from data_prep.inputs.record import Input
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.progress import Progress
from data_prep.sharding.record_index import RecordIndex
from data_prep.sharding.work_folder import WorkFolder
from ufork.errors import ShardError
from ufork.files import whole_file
from ufork.processes.worker_pool import run_jobs

CHUNK_RECORDS = 4096
REASONS = (None, EXACT, NEAR)
"""Reasons to drop a record, indexed by the bytes of duplicates.npy; None keeps it."""

_KEPT = "kept"
_CHUNK_DTYPE = np.dtype([(_KEPT, np.bool_), *FINGERPRINT_DTYPE.descr])


def fingerprint_chunks(num_records: int) -> int:
    """Returns the number of chunks for `num_records` records."""
    return -(-num_records // CHUNK_RECORDS)


def fingerprints(config: ShardConfig, target: Path, open_input: Callable[[], Input], chunks: range) -> None:
    """Fingerprints the chunks that have no file yet.

    Args:
        config: filters and the definition of duplicates.
        target: folder of the shards, with a record index.
        open_input: picklable function; each process opens the input with it.
        chunks: numbers of the chunks, below `fingerprint_chunks`.

    Raises:
        StorageError: a chunk's file cannot be written.
        WorkerError: a process died.
    """
    work = WorkFolder(target)
    missing = [chunk for chunk in chunks if not work.fingerprint_chunk(chunk).exists()]
    num_records = len(RecordIndex(work.record_index))
    total = sum(min(CHUNK_RECORDS, num_records - chunk * CHUNK_RECORDS) for chunk in missing)
    progress, reached = Progress("fingerprints", unit="records", total=total), 0
    start = partial(FingerprintChunks, config, target, open_input)
    with closing(run_jobs(missing, start, num_workers=config.num_workers)) as results:
        for _, fingerprinted in results:
            reached += fingerprinted
            progress.reach(reached)
    progress.finish(reached, f"{len(chunks) - len(missing)} of {len(chunks)} chunks were already done")


def find_duplicates(config: ShardConfig, target: Path, num_records: int) -> None:
    """Writes duplicates.npy from the fingerprints of all chunks, unless it exists.

    Raises:
        ShardError: a chunk has no fingerprints; names it.
        StorageError: the file cannot be written.
    """
    work = WorkFolder(target)
    if work.duplicates.exists():
        return
    chunks = np.concatenate([_load_chunk(work, chunk) for chunk in range(fingerprint_chunks(num_records))])
    kept = np.flatnonzero(chunks[_KEPT])
    found = duplicates_of(chunks[list(FINGERPRINT_DTYPE.names or ())][kept], config.duplicates)
    reasons = np.zeros(num_records, np.uint8)
    reasons[kept[found.dropped]] = REASONS.index(EXACT)
    reasons[kept[found.near]] = REASONS.index(NEAR)
    with whole_file(work.duplicates) as file:
        np.save(file, reasons, allow_pickle=False)


def _load_chunk(work: WorkFolder, chunk: int) -> np.ndarray:
    try:
        return np.load(work.fingerprint_chunk(chunk), allow_pickle=False)
    except FileNotFoundError:
        raise ShardError(
            f"{work.target}: chunk {chunk} has no fingerprints; run all array tasks with --step fingerprints first"
        ) from None


class FingerprintChunks:
    """Fingerprints chunks; built once per process."""

    def __init__(self, config: ShardConfig, target: Path, open_input: Callable[[], Input]) -> None:
        """Opens the input and the record index."""
        self._work, self._config = WorkFolder(target), config
        self._filter = RecordFilter(config.filters, open_input())
        self._record_index = RecordIndex(self._work.record_index)

    def __call__(self, chunk: int) -> int:
        """Writes the fingerprints of chunk number `chunk`; returns the number of its records.

        Raises:
            StorageError: the file cannot be written.
        """
        start = chunk * CHUNK_RECORDS
        records = self._record_index.read(range(start, min(start + CHUNK_RECORDS, len(self._record_index))))
        values = np.zeros(len(records), _CHUNK_DTYPE)
        for number, record in enumerate(records):
            filtered = self._filter.apply(record)
            if not filtered.result.reason:
                values[number] = True, *fingerprint(filtered.image, text_of(record), self._config.duplicates)
        with whole_file(self._work.fingerprint_chunk(chunk)) as file:
            np.save(file, values, allow_pickle=False)
        return len(records)
