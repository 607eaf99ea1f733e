"""One job of making shards: a range of positions becomes one shard of each task, by one process.

    positions -> record numbers -> records, images (in the input's order) -> samples -> shards (in the shuffle's order)
              -> TARGET/{task}-00012.tar + index, .work/dropped/00012.jsonl; last .work/done/00012.json

Until the last file is there the job counts as not done and is done anew, with the same bytes.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.catalogue import Catalogue, dropped_line
from data_prep.inputs.record import Dropped, Input, Record
from data_prep.sample_making import SampleMaker
from data_prep.shard_config import ShardConfig
from data_prep.shard_plan import ShardPlan
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
    num_records: int
    """Of its positions, those left out included."""
    dropped: dict[str, int]
    """Records that were left out, by reason."""

    def save(self, path: Path) -> None:
        """Declares the job done."""
        write_whole(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "JobDone":
        """What was declared at `path`."""
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(ShardEntry(**{**entry, "task": Task(entry["task"])}) for entry in values.pop("shards"))
        return cls(shards=shards, **values)


def load_done(work: WorkFolder, job: int) -> JobDone | None:
    """What `job` wrote; None when it is not done, or a shard of its has gone or been cut since."""
    try:
        done = JobDone.load(work.done / f"{job:05d}.json")
        sizes = [(work.target / entry.file).stat().st_size for entry in done.shards]
    except FileNotFoundError:
        return None
    return done if sizes == [entry.bytes for entry in done.shards] else None


class ShardJobs:
    """Does jobs by their numbers; opened once a process."""

    def __init__(self, config: ShardConfig, target: Path, open_input: OpenInput) -> None:
        """Opens what all jobs need; the catalogue and the plan are there."""
        self._config, self._work = config, WorkFolder(target)
        self._input, self._catalogue = open_input(), Catalogue(self._work.catalogue)
        self._plan = ShardPlan.load(self._work.plan)
        self._maker = SampleMaker(config.samples, source=config.source, split=config.split, licence=config.licence)

    def __call__(self, job: int) -> JobDone:
        """Writes the shards of `job`.

        Raises:
            StorageError: they cannot be written.
        """
        samples, dropped = self._samples(job)
        reasons = Counter(entry.reason for entry, _ in dropped)
        done = JobDone(tuple(self._write(job, samples)), len(self._plan.positions(job)), dict(sorted(reasons.items())))
        lines = [dropped_line(entry, detail) for entry, detail in dropped]
        write_whole(self._work.dropped / f"{job:05d}.jsonl", "".join(lines))
        done.save(self._work.done / f"{job:05d}.json")
        return done

    def _samples(self, job: int) -> tuple[list[Sample], list[tuple[Dropped, str]]]:
        """Samples in the shuffle's order; what was left out, with details, in the input's."""
        numbers = self._plan.numbers(job)
        by_number: dict[int, list[Sample]] = {}
        dropped = []
        in_order = sorted(numbers.tolist())
        for number, record in zip(in_order, self._catalogue.read(in_order), strict=True):
            reason, detail = NO_SAMPLE, ""
            try:
                by_number[number] = self._samples_of(record)
            except SampleError as error:
                reason, detail = UNREADABLE, str(error)
            if not by_number.get(number):
                dropped.append((Dropped(record.id, reason), detail))
        return [sample for number in numbers.tolist() for sample in by_number.get(number, ())], dropped

    def _samples_of(self, record: Record) -> list[Sample]:
        return self._maker.samples(record, None if record.image is None else self._input.image(record))

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
