"""One job of making shards: a range of positions becomes one shard of each task, by one process.

    positions -> record numbers -> records, judged (in the input's order) -> samples -> shards (in the shuffle's order)
              -> TARGET/{task}-00012.tar + index, .work/dropped/00012.jsonl; last .work/done/00012.json

Until the last file is there the job counts as not done and is done anew, with the same bytes.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.filtering.record_filter import UNREADABLE, RecordFilter
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
from ufork.files import write_whole

OpenInput = Callable[[], Input]
"""Importable by name: each process opens the input for itself."""

NO_SAMPLE = "too little for a sample of any task"


@dataclass(frozen=True)
class JobDone:
    """What a job wrote and counted."""

    shards: tuple[ShardEntry, ...]
    selection: Selection
    statistics: Statistics

    def save(self, path: Path) -> None:
        """Declares the job done."""
        shards = [asdict(entry) for entry in self.shards]
        counts = {"records": self.selection.to_dict(), "samples": self.statistics.to_dict()}
        write_whole(path, json.dumps({"shards": shards, **counts}))

    @classmethod
    def load(cls, path: Path) -> "JobDone":
        """What was declared at `path`."""
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(map(ShardEntry.from_dict, values["shards"]))
        return cls(shards, Selection.from_dict(values["records"]), Statistics.from_dict(values["samples"]))


def load_done(work: WorkFolder, job: int) -> JobDone | None:
    """What `job` wrote; None when it is not done, or a shard of its has gone or been cut since."""
    try:
        done = JobDone.load(work.job_done(job))
        sizes = [(work.target / entry.file).stat().st_size for entry in done.shards]
    except FileNotFoundError:
        return None
    return done if sizes == [entry.bytes for entry in done.shards] else None


@dataclass
class _Made:
    """What a job's records came to, in the input's order."""

    samples: dict[int, list[Sample]] = field(default_factory=dict)
    """By the records' numbers."""
    dropped: list[str] = field(default_factory=list)
    """Lines of the file of that name."""
    selection: Selection = field(default_factory=Selection)
    statistics: Statistics = field(default_factory=Statistics)

    def drop(self, record: Record, reason: str, detail: str = "") -> None:
        self.selection.drop(record.id, reason)
        self.dropped.append(dropped_line(Dropped(record.id, reason), detail))


class ShardJobs:
    """Does jobs by their numbers; opened once a process."""

    def __init__(self, config: ShardConfig, target: Path, open_input: OpenInput) -> None:
        """Opens what all jobs need; record_index, plan and, where duplicates are dropped, these are there."""
        self._config, self._work = config, WorkFolder(target)
        self._filter, self._record_index = (
            RecordFilter(config.filters, open_input()),
            RecordIndex(self._work.record_index),
        )
        self._plan = ShardPlan.load(self._work.plan)
        self._maker = SampleMaker(config.samples, source=config.source, split=config.split, licence=config.licence)

    def __call__(self, job: int) -> JobDone:
        """Writes the shards of `job`.

        Raises:
            StorageError: they cannot be written.
        """
        numbers = self._plan.numbers(job)
        made = self._made(np.sort(numbers))
        samples = [sample for number in numbers.tolist() for sample in made.samples.get(number, ())]
        done = JobDone(tuple(self._write(job, samples)), made.selection, made.statistics)
        write_whole(self._work.job_dropped(job), "".join(made.dropped))
        done.save(self._work.job_done(job))
        return done

    def _made(self, numbers: np.ndarray) -> _Made:
        made = _Made()
        repeats = np.zeros(len(numbers), np.uint8)
        if self._config.duplicates.wanted:
            repeats = np.load(self._work.duplicates, mmap_mode="r")[numbers]
        records = self._record_index.read(numbers)
        for number, record, repeat in zip(numbers.tolist(), records, repeats.tolist(), strict=True):
            if reason := REASONS[repeat]:
                made.drop(record, reason)
            else:
                made.samples[number] = self._samples(record, made)
        return made

    def _samples(self, record: Record, made: _Made) -> list[Sample]:
        """Those of a record that is no duplicate; none where it is left out."""
        filtered = self._filter.apply(record)
        if filtered.result.reason:
            made.drop(record, filtered.result.reason, filtered.detail)
            return []
        try:
            samples = self._maker.samples(record, filtered.image)
        except SampleError as error:
            made.drop(record, UNREADABLE, str(error))
            return []
        if not samples:
            made.drop(record, NO_SAMPLE)
            return []
        made.selection.kept += 1
        for sample in samples:
            made.statistics.add(sample, filtered.result.header, language=filtered.result.language)
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
