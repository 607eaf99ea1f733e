"""One job of making shards: a range of positions becomes one shard of each task, by one process.

    positions -> record numbers -> records, images (in the input's order) -> filters -> samples
              -> shards (in the shuffle's order)
              -> TARGET/{task}-00012.tar + index, .work/dropped/00012.jsonl; last .work/done/00012.json

Until the last file is there the job counts as not done and is done anew, with the same bytes.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.catalogue import Catalogue, dropped_line
from data_prep.filters import Filters
from data_prep.inputs.record import Dropped, Input, Record
from data_prep.sample_making import SampleMaker, is_codes
from data_prep.sample_statistics import Statistics
from data_prep.selection import Selection
from data_prep.shard_config import ShardConfig
from data_prep.shard_plan import ShardPlan
from data_prep.survey import REASONS, load_duplicates
from data_prep.work_folder import WorkFolder, write_whole
from data_prep.writer import ShardWriter
from ufork.data.manifest import ShardEntry
from ufork.data.sample import Sample
from ufork.errors import SampleError
from ufork.vocabulary import Task

OpenInput = Callable[[], Input]
"""Importable by name: each process opens the input for itself."""

UNREADABLE, NO_SAMPLE = "image cannot be read", "too little for a sample of any task"


@dataclass(frozen=True)
class JobDone:
    """What a job wrote and counted."""

    shards: tuple[ShardEntry, ...]
    selection: Selection
    """Of its records."""
    statistics: Statistics
    """Of its samples."""

    def save(self, path: Path) -> None:
        """Declares the job done."""
        values = {
            "shards": [asdict(entry) for entry in self.shards],
            "selection": self.selection.to_dict(),
            "statistics": self.statistics.to_dict(),
        }
        write_whole(path, json.dumps(values))

    @classmethod
    def load(cls, path: Path) -> "JobDone":
        """What was declared at `path`."""
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            tuple(ShardEntry(**{**entry, "task": Task(entry["task"])}) for entry in values["shards"]),
            Selection.from_dict(values["selection"]),
            Statistics.from_dict(values["statistics"]),
        )


def load_done(work: WorkFolder, job: int) -> JobDone | None:
    """What `job` wrote; None when it is not done, or a shard of its has gone or been cut since."""
    try:
        done = JobDone.load(work.done / f"{job:05d}.json")
        sizes = [(work.target / entry.file).stat().st_size for entry in done.shards]
    except FileNotFoundError:
        return None
    return done if sizes == [entry.bytes for entry in done.shards] else None


@dataclass
class _Chosen:
    """Of a job's records."""

    samples: dict[int, list[Sample]] = field(default_factory=dict)
    """By the record's number."""
    selection: Selection = field(default_factory=Selection)
    statistics: Statistics = field(default_factory=Statistics)
    dropped_lines: list[str] = field(default_factory=list)

    def drop(self, record_id: str, reason: str, detail: str) -> None:
        self.selection.drop(record_id, reason)
        self.dropped_lines.append(dropped_line(Dropped(record_id, reason), detail))

    def in_order(self, numbers: list[int]) -> list[Sample]:
        return [sample for number in numbers for sample in self.samples.get(number, ())]


class ShardJobs:
    """Does jobs by their numbers; opened once a process."""

    def __init__(self, config: ShardConfig, target: Path, open_input: OpenInput) -> None:
        """Opens what all jobs need; the catalogue and the plan are there."""
        self._config, self._work = config, WorkFolder(target)
        self._input, self._catalogue = open_input(), Catalogue(self._work.catalogue)
        self._plan = ShardPlan.load(self._work.plan)
        self._maker = SampleMaker(config.samples, source=config.source, split=config.split, licence=config.licence)
        self._filters = Filters(config.filters)
        self._duplicates = load_duplicates(self._work) if config.duplicates.wanted else None

    def __call__(self, job: int) -> JobDone:
        """Writes the shards of `job`.

        Raises:
            StorageError: they cannot be written.
        """
        chosen = self._choose(job)
        entries = tuple(self._write(job, chosen.in_order(self._plan.numbers(job).tolist())))
        write_whole(self._work.dropped / f"{job:05d}.jsonl", "".join(chosen.dropped_lines))
        done = JobDone(entries, chosen.selection, chosen.statistics)
        done.save(self._work.done / f"{job:05d}.json")
        return done

    def _choose(self, job: int) -> "_Chosen":
        """Looks at the job's records in the input's order, which reads it soonest."""
        numbers = sorted(self._plan.numbers(job).tolist())
        chosen = _Chosen()
        for number, record in zip(numbers, self._catalogue.read(numbers), strict=True):
            try:
                reason, detail = self._take(number, record, chosen), ""
            except SampleError as error:
                reason, detail = UNREADABLE, str(error)
            if reason:
                chosen.drop(record.id, reason, detail)
        return chosen

    def _take(self, number: int, record: Record, chosen: "_Chosen") -> str | None:
        """Adds the record's samples to `chosen`, or tells why it is left out."""
        if self._duplicates is not None and (repeats := REASONS[self._duplicates[number]]):
            return repeats
        image = None if record.image is None else self._input.image(record)
        verdict = self._filters.judge(record, None if image is None or is_codes(image) else image)
        if verdict.reason:
            return verdict.reason
        samples = self._maker.samples(record, image)
        if not samples:
            return NO_SAMPLE
        chosen.samples[number] = samples
        chosen.selection.kept += 1
        for sample in samples:
            chosen.statistics.add(sample, verdict.image, language=verdict.language)
        return None

    def _write(self, job: int, samples: list[Sample]) -> list[ShardEntry]:
        first_key = self._plan.positions(job).start
        config = self._config
        with ExitStack() as stack:
            writers = {
                task: stack.enter_context(
                    ShardWriter(
                        self._work.target,
                        source=config.source,
                        split=config.split,
                        task=task,
                        shard_samples=self._plan.job_records,
                        first_shard=job,
                        first_key=first_key,
                    )
                )
                for task in config.samples.tasks
            }
            for sample in samples:
                writers[sample.task].write(sample)
        return [entry for writer in writers.values() for entry in writer.entries]
