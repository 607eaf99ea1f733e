"""What must be known of every record before one is kept: fingerprints, by which duplicates are found.

    record index, in chunks ->  judged, fingerprint      ->  .work/fingerprints/00012.npy, one row a record (shared out)
    all chunks            ->  duplicates.duplicates_of ->  .work/duplicates.npy, one byte a record (one process)

Records that the filters drop have no part in it: none is dropped for repeating one that is not kept either.
"""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.filtering.duplicates import EXACT, FINGERPRINT_DTYPE, NEAR, duplicates_of, fingerprint
from data_prep.filtering.filters import text_of
from data_prep.filtering.record_filter import RecordFilter
from data_prep.inputs.record import Input, Record
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.progress import Progress
from data_prep.sharding.record_index import RecordIndex
from data_prep.sharding.work_folder import WorkFolder
from ufork.errors import ShardError
from ufork.files import whole_file
from ufork.processes.worker_pool import run_jobs

CHUNK_RECORDS = 4096
REASONS = (None, EXACT, NEAR)
"""By the bytes of duplicates.npy."""

_KEPT = "kept"
_ROW = np.dtype([(_KEPT, np.bool_), *FINGERPRINT_DTYPE.descr])


def fingerprint_chunks(num_records: int) -> int:
    """How many chunks there are."""
    return -(-num_records // CHUNK_RECORDS)


def fingerprints(config: ShardConfig, target: Path, open_input: Callable[[], Input], chunks: range) -> None:
    """Fingerprints those of `chunks` that were not yet.

    Args:
        config: what is kept, and which repetitions count.
        target: of the shards, with a record_index.
        open_input: importable by name; each process opens the input for itself.
        chunks: their numbers, of `fingerprint_chunks`.

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
    progress.finish(reached, f"{len(chunks) - len(missing)} of {len(chunks)} chunks were done before")


def find_duplicates(config: ShardConfig, target: Path, num_records: int) -> None:
    """Writes duplicates.npy from all chunks, where it is not there yet.

    Raises:
        ShardError: names a chunk that was not fingerprinted.
        StorageError: it cannot be written.
    """
    work = WorkFolder(target)
    if work.duplicates.exists():
        return
    rows = np.concatenate([_loaded(work, chunk) for chunk in range(fingerprint_chunks(num_records))])
    kept = np.flatnonzero(rows[_KEPT])
    found = duplicates_of(rows[list(FINGERPRINT_DTYPE.names or ())][kept], config.duplicates)
    reasons = np.zeros(num_records, np.uint8)
    reasons[kept[found.dropped]] = REASONS.index(EXACT)
    reasons[kept[found.near]] = REASONS.index(NEAR)
    with whole_file(work.duplicates) as file:
        np.save(file, reasons, allow_pickle=False)


def _loaded(work: WorkFolder, chunk: int) -> np.ndarray:
    try:
        return np.load(work.fingerprint_chunk(chunk), allow_pickle=False)
    except FileNotFoundError:
        raise ShardError(
            f"{work.target}: chunk {chunk} has no fingerprints; run all array tasks with --step fingerprints first"
        ) from None


class FingerprintChunks:
    """Fingerprints chunks by their numbers; opened once a process."""

    def __init__(self, config: ShardConfig, target: Path, open_input: Callable[[], Input]) -> None:
        """Opens what all chunks need."""
        self._work, self._config = WorkFolder(target), config
        self._filter, self._record_index = (
            RecordFilter(config.filters, open_input()),
            RecordIndex(self._work.record_index),
        )

    def __call__(self, chunk: int) -> int:
        """Writes the rows of a chunk; returns how many.

        Raises:
            StorageError: they cannot be written.
        """
        start = chunk * CHUNK_RECORDS
        records = self._record_index.read(range(start, min(start + CHUNK_RECORDS, len(self._record_index))))
        rows = np.zeros(len(records), _ROW)
        for number, record in enumerate(records):
            if (row := self._row(record)) is not None:
                rows[number] = row
        with whole_file(self._work.fingerprint_chunk(chunk)) as file:
            np.save(file, rows, allow_pickle=False)
        return len(records)

    def _row(self, record: Record) -> tuple[int, ...] | None:
        filtered = self._filter.apply(record)
        if filtered.result.reason:
            return None
        return True, *fingerprint(filtered.image, text_of(record), self._config.duplicates)
