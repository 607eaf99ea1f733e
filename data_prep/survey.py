"""What must be known of every image before one is kept, as hashes by which duplicates are found.

    catalogue, in chunks  ->  survey_image(bytes) -> a row of numbers  ->  .work/survey/00012.npy, one row a record
                          ->  load_survey: all rows, as one table

Chunks are shared out and done as the jobs of shards are: by several processes and tasks, each once.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.catalogue import Catalogue
from data_prep.inputs.record import Input, Record
from data_prep.progress import Progress
from data_prep.work_folder import WorkFolder, draft_of
from data_prep.workers import run_jobs
from ufork.errors import SampleError, ShardError

SEEN = "seen"
"""Column that tells whether a record has an image that could be surveyed; all others are 0 where it is not."""
CHUNK_RECORDS = 4096

SurveyImage = Callable[[bytes], tuple[Any, ...]]
"""An image file to the row's values; raises SampleError where it is none. Importable by name."""


def survey_chunks(num_records: int) -> int:
    """How many chunks there are."""
    return -(-num_records // CHUNK_RECORDS)


def survey(
    target: Path,
    open_input: Callable[[], Input],
    survey_image: SurveyImage,
    columns: np.dtype,
    *,
    chunks: range,
    num_workers: int,
) -> None:
    """Surveys those of `chunks` that were not yet.

    Args:
        target: of the shards, with a catalogue.
        open_input: importable by name; each process opens the input for itself.
        survey_image: what is known of one image.
        columns: structured: names and types of the row's values.
        chunks: their numbers, of `survey_chunks`.
        num_workers: processes.

    Raises:
        StorageError: a chunk's file cannot be written.
        WorkerError: a process died.
    """
    work = WorkFolder(target)
    missing = [chunk for chunk in chunks if not _chunk_path(work, chunk).exists()]
    start = partial(SurveyChunks, target, open_input, survey_image, columns)
    progress, reached = Progress("survey", unit="records", total=len(missing) * CHUNK_RECORDS), 0
    with closing(run_jobs(missing, start, num_workers=num_workers)) as results:
        for _, num_records in results:
            reached += num_records
            progress.reach(reached)
    progress.finish(reached, f"{len(chunks) - len(missing)} of {len(chunks)} chunks before")


def load_survey(target: Path, num_records: int) -> np.ndarray:
    """The whole table, one row a record: the columns of the survey and `SEEN`.

    Raises:
        ShardError: names a chunk that is missing.
    """
    return np.concatenate(list(_chunks(WorkFolder(target), num_records)))


def _chunks(work: WorkFolder, num_records: int) -> Iterator[np.ndarray]:
    for chunk in range(survey_chunks(num_records)):
        try:
            yield np.load(_chunk_path(work, chunk), allow_pickle=False)
        except FileNotFoundError:
            raise ShardError(
                f"{work.target}: chunk {chunk} was not surveyed; run `ufork shard` with --phase survey for all tasks"
            ) from None


def _chunk_path(work: WorkFolder, chunk: int) -> Path:
    return work.survey / f"{chunk:05d}.npy"


class SurveyChunks:
    """Surveys chunks by their numbers; opened once a process."""

    def __init__(
        self, target: Path, open_input: Callable[[], Input], survey_image: SurveyImage, columns: np.dtype
    ) -> None:
        """Opens what all chunks need."""
        self._work, self._input, self._survey_image = WorkFolder(target), open_input(), survey_image
        self._catalogue = Catalogue(self._work.catalogue)
        self._columns = np.dtype([(SEEN, np.bool_), *columns.descr])

    def __call__(self, chunk: int) -> int:
        """Writes the rows of a chunk; returns how many.

        Raises:
            StorageError: they cannot be written.
        """
        start = chunk * CHUNK_RECORDS
        records = self._catalogue.read(range(start, min(start + CHUNK_RECORDS, len(self._catalogue))))
        rows = np.zeros(len(records), self._columns)
        for number, record in enumerate(records):
            if (row := self._row(record)) is not None:
                rows[number] = (True, *row)
        with draft_of(_chunk_path(self._work, chunk)) as draft, open(draft, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        return len(records)

    def _row(self, record: Record) -> tuple[Any, ...] | None:
        try:
            return None if record.image is None else self._survey_image(self._input.image(record))
        except SampleError:
            return None
