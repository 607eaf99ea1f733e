"""Runs one job: a process makes one shard per task from a range of positions.

    positions -> record numbers -> records, filtered (in the order of the input) -> samples -> shards (shuffled order)
              -> TARGET/{task}-00012.tar + index, .work/dropped/00012.jsonl, then .work/done/00012.json

The file in done/ is written last. A job without it is repeated from its start and writes the same bytes.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.filtering.record_filter import RecordFilter
from data_prep.inputs.record import Dropped, Input, Record
from data_prep.report.selection import Selection
from data_prep.report.statistics import Statistics
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.fingerprints import REASONS
from data_prep.sharding.plan import ShardPlan
from data_prep.sharding.record_index import RecordIndex, dropped_line
from data_prep.sharding.sample_making import SampleMaker
from data_prep.sharding.work_folder import WorkFolder
from ufork.data.shards.manifest import ShardEntry
from ufork.data.shards.sample import Sample
from ufork.data.shards.writer import ShardWriter
from ufork.errors import SampleError
from ufork.files import named_errors, write_whole

OpenInput = Callable[[], Input]
"""Opens the input; picklable, since each process calls it."""

NO_SAMPLE = "too little for a sample of any task"
"""Reason to drop a record without the text or image that a sample of either task needs."""


@dataclass(frozen=True)
class JobDone:
    """Result of a finished job: its shards and counts."""

    shards: tuple[ShardEntry, ...]
    selection: Selection
    statistics: Statistics

    def save(self, path: Path) -> None:
        """Writes the file that marks the job as done."""
        shards = [asdict(entry) for entry in self.shards]
        counts = {"records": self.selection.to_dict(), "samples": self.statistics.to_dict()}
        write_whole(path, json.dumps({"shards": shards, **counts}))

    @classmethod
    def load(cls, path: Path) -> "JobDone":
        """Reads a file that `save` wrote."""
        with named_errors(path):
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(map(ShardEntry.from_dict, values["shards"]))
        return cls(shards, Selection.from_dict(values["records"]), Statistics.from_dict(values["samples"]))


def load_done(work: WorkFolder, job: int) -> JobDone | None:
    """Returns the result of `job`; None if it is not done, or its file or one of its shards is missing or damaged."""
    try:
        done = JobDone.load(work.job_done(job))
        sizes = [(work.target / entry.file).stat().st_size for entry in done.shards]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return done if sizes == [entry.bytes for entry in done.shards] else None


@dataclass
class _JobState:
    """Samples and counts of a job's records so far, in the order of the input."""

    samples: dict[int, list[Sample]] = field(default_factory=dict)
    """Record number -> its samples."""
    dropped: list[str] = field(default_factory=list)
    """Lines of .work/dropped/*.jsonl."""
    selection: Selection = field(default_factory=Selection)
    statistics: Statistics = field(default_factory=Statistics)

    def drop(self, record: Record, reason: str, detail: str = "") -> None:
        self.selection.drop(record.id, reason)
        self.dropped.append(dropped_line(Dropped(record.id, reason), detail))


class ShardJobs:
    """Runs jobs; built once per process."""

    def __init__(self, config: ShardConfig, target: Path, open_input: OpenInput) -> None:
        """Opens the input and the files of earlier steps: record index, plan and, if configured, duplicates."""
        self._config, self._work = config, WorkFolder(target)
        self._filter = RecordFilter(config.filters, open_input())
        self._record_index = RecordIndex(self._work.record_index)
        self._plan = ShardPlan.load(self._work.plan)
        self._maker = SampleMaker(config.samples, source=config.source, split=config.split, licence=config.licence)

    def __call__(self, job: int) -> JobDone:
        """Writes the shards of job number `job`.

        Raises:
            StorageError: a file cannot be written.
        """
        numbers = self._plan.numbers(job)
        state = self._make_samples(np.sort(numbers))
        samples = [sample for number in numbers.tolist() for sample in state.samples.get(number, ())]
        done = JobDone(tuple(self._write(job, samples)), state.selection, state.statistics)
        write_whole(self._work.job_dropped(job), "".join(state.dropped))
        done.save(self._work.job_done(job))
        return done

    def _make_samples(self, numbers: np.ndarray) -> _JobState:
        state = _JobState()
        duplicates = np.zeros(len(numbers), np.uint8)
        if self._config.duplicates.wanted:
            duplicates = np.load(self._work.duplicates, mmap_mode="r")[numbers]
        records = self._record_index.read(numbers)
        for number, record, duplicate in zip(numbers.tolist(), records, duplicates.tolist(), strict=True):
            if reason := REASONS[duplicate]:
                state.drop(record, reason)
            else:
                state.samples[number] = self._samples(record, state)
        return state

    def _samples(self, record: Record, state: _JobState) -> list[Sample]:
        """Filters a record that is no duplicate and returns its samples; none if it is dropped."""
        filtered = self._filter.apply(record)
        if filtered.result.reason:
            state.drop(record, filtered.result.reason, filtered.detail)
            return []
        try:
            samples = self._maker.samples(record, filtered.image)
        except SampleError as error:
            state.drop(record, error.reason, str(error))
            return []
        if not samples:
            state.drop(record, NO_SAMPLE)
            return []
        state.selection.kept += 1
        for sample in samples:
            state.statistics.add(sample, filtered.result.header, language=filtered.result.language)
        return samples

    def _write(self, job: int, samples: list[Sample]) -> list[ShardEntry]:
        with ExitStack() as stack:
            writers = {
                task: stack.enter_context(
                    ShardWriter(
                        self._work.target,
                        source=self._config.source,
                        split=self._config.split,
                        task=task,
                        shard_samples=self._plan.job_records,
                        first_shard=job,
                        first_key=self._plan.positions(job).start,
                    )
                )
                for task in self._config.samples.tasks
            }
            for sample in samples:
                writers[sample.task].write(sample)
        return [entry for writer in writers.values() for entry in writer.entries]
