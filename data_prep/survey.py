"""Fingerprints of all records before one is kept, and which of them are duplicates.

    catalogue, in chunks  ->  a fingerprint of each record that the filters keep  ->  .work/survey/00012.npy
    all chunks            ->  data_prep/duplicates.py                             ->  .work/duplicates.npy

Chunks are shared out and done as the jobs of shards are: by several processes and tasks, each once.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.catalogue import Catalogue
from data_prep.duplicates import EXACT, FINGERPRINT_DTYPE, NEAR, Fingerprint, duplicates_of, fingerprint
from data_prep.filters import Filters, text_of
from data_prep.inputs.record import Input, Record
from data_prep.progress import Progress
from data_prep.shard_config import ShardConfig
from data_prep.work_folder import WorkFolder, draft_of
from data_prep.workers import run_jobs
from ufork.errors import SampleError, ShardError

CHUNK_RECORDS = 4096
REASONS = (None, EXACT, NEAR)
"""Why a record is left out, by the number that stands for it in `.work/duplicates.npy`."""

_SEEN = "seen"
_COLUMNS = np.dtype([(_SEEN, np.bool_), *FINGERPRINT_DTYPE.descr])


def survey_chunks(num_records: int) -> int:
    """How many chunks there are."""
    return -(-num_records // CHUNK_RECORDS)


def survey(config: ShardConfig, target: Path, open_input: Callable[[], Input], chunks: range) -> None:
    """Surveys those of `chunks` that were not yet, after the catalogue was made.

    Args:
        config: what shards are made by.
        target: where they go.
        open_input: importable by name; each process opens the input for itself.
        chunks: their numbers, of `survey_chunks`.

    Raises:
        StorageError: a chunk's file cannot be written.
        WorkerError: a process died.
    """
    work = WorkFolder(target)
    missing = [chunk for chunk in chunks if not _chunk_path(work, chunk).exists()]
    start = partial(SurveyChunks, config, target, open_input)
    num_records = len(Catalogue(work.catalogue))
    total = sum(min(CHUNK_RECORDS, num_records - chunk * CHUNK_RECORDS) for chunk in missing)
    progress, reached = Progress("survey", unit="records", total=total), 0
    with closing(run_jobs(missing, start, num_workers=config.num_workers)) as results:
        for _, surveyed in results:
            reached += surveyed
            progress.reach(reached)
    progress.finish(reached, f"{len(chunks) - len(missing)} of {len(chunks)} chunks before")


class SurveyChunks:
    """Surveys chunks by their numbers; opened once a process."""

    def __init__(self, config: ShardConfig, target: Path, open_input: Callable[[], Input]) -> None:
        """Opens what all chunks need."""
        self._work, self._input, self._duplicates = WorkFolder(target), open_input(), config.duplicates
        self._catalogue, self._filters = Catalogue(self._work.catalogue), Filters(config.filters)

    def __call__(self, chunk: int) -> int:
        """Writes the rows of a chunk; returns how many.

        Raises:
            StorageError: they cannot be written.
        """
        start = chunk * CHUNK_RECORDS
        records = self._catalogue.read(range(start, min(start + CHUNK_RECORDS, len(self._catalogue))))
        rows = np.zeros(len(records), _COLUMNS)
        for number, record in enumerate(records):
            if (row := self._row(record)) is not None:
                rows[number] = (True, *row)
        with draft_of(_chunk_path(self._work, chunk)) as draft, open(draft, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        return len(records)

    def _row(self, record: Record) -> Fingerprint | None:
        """None where the record is left out anyway: another may not go because of it."""
        try:
            image = None if record.image is None else self._input.image(record)
        except SampleError:
            return None
        if self._filters.judge(record, image).reason:
            return None
        return fingerprint(image, text_of(record), self._duplicates)


def find_duplicates(config: ShardConfig, target: Path) -> None:
    """Decides which records go, once all chunks were surveyed; what was decided before stays.

    Raises:
        ShardError: names a chunk that is missing.
        StorageError: the decision cannot be written.
    """
    work = WorkFolder(target)
    if work.duplicates.exists():
        return
    rows = np.concatenate(list(_chunks(work, len(Catalogue(work.catalogue)))))
    seen = np.flatnonzero(rows[_SEEN])
    fingerprints = np.empty(len(seen), FINGERPRINT_DTYPE)
    for name in FINGERPRINT_DTYPE.names or ():
        fingerprints[name] = rows[name][seen]
    found = duplicates_of(fingerprints, config.duplicates)
    reasons = np.zeros(len(rows), np.uint8)
    reasons[seen[found.dropped]] = np.where(found.near[found.dropped], REASONS.index(NEAR), REASONS.index(EXACT))
    with draft_of(work.duplicates) as draft, open(draft, "wb") as file:
        np.save(file, reasons, allow_pickle=False)


def load_duplicates(work: WorkFolder) -> np.ndarray:
    """A number of REASONS for each record: uint8 [N], left on the disk."""
    reasons: np.ndarray = np.load(work.duplicates, mmap_mode="r", allow_pickle=False)
    return reasons


def _chunks(work: WorkFolder, num_records: int) -> Iterator[np.ndarray]:
    for chunk in range(survey_chunks(num_records)):
        try:
            yield np.load(_chunk_path(work, chunk), allow_pickle=False)
        except FileNotFoundError:
            raise ShardError(
                f"{work.target}: chunk {chunk} was not surveyed; let all tasks run with --phase survey before"
            ) from None


def _chunk_path(work: WorkFolder, chunk: int) -> Path:
    return work.survey / f"{chunk:05d}.npy"
