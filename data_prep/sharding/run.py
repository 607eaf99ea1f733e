"""Converts a collection into shards, with several processes or array tasks; each step can be resumed.

    record_index   reads the text of the input once, plans the jobs        the first task that comes
    fingerprints   fingerprints all records, to find duplicates            divided among the tasks
    write          writes one shard per task and job                       divided among the tasks
    merge          data_prep/sharding/merge.py: manifest and report        one task, when all jobs are done

The bytes of the shards depend on config and input alone, not on the number of processes or interruptions.
"""

import logging
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.sharding.config import ShardConfig
from data_prep.sharding.fingerprints import find_duplicates, fingerprint_chunks, fingerprints
from data_prep.sharding.job import OpenInput, ShardJobs, load_done
from data_prep.sharding.merge import CONTACT_SHEET_FILE, finish_shards, report_on
from data_prep.sharding.plan import ShardPlan, make_plan
from data_prep.sharding.progress import Progress
from data_prep.sharding.record_index import RecordIndex, build_record_index
from data_prep.sharding.work_folder import WorkFolder
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.writer import finished_source
from ufork.errors import ConfigError, InputError
from ufork.processes.worker_pool import run_jobs

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Share of one array task in the jobs: every `of`-th one, from number `task` on."""

    task: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.task < self.of:
            raise ConfigError(f"task {self.task} of {self.of}: expected a task from 0 to {self.of - 1}")

    def jobs(self, num_jobs: int) -> range:
        """Returns the numbers of this task's jobs, of `num_jobs`."""
        return range(self.task, num_jobs, self.of)


WHOLE = Share()
"""Share of a task that does all jobs."""


def shard(config: ShardConfig, target: Path, open_input: OpenInput) -> Manifest:
    """Writes the shards and the manifest in `target` that are missing.

    Args:
        config: configuration of the shards.
        target: folder to write, `{shards folder}/{source}/{split}`.
        open_input: opens the collection that `config.input` names.

    Raises:
        ConfigError: `target` was started with another config.
        InputError: the collection cannot be read.
        StorageError: `target` cannot be written.
        WorkerError: a process died.
    """
    finished = finished_source(target, config.digest())
    if finished is not None:
        _logger.info("%s: already finished", target)
        if not (target / CONTACT_SHEET_FILE).exists():  # the disk was full when it came to the report
            report_on(target)
        return finished
    make_record_index(config, target, open_input)
    fingerprint_records(config, target, open_input)
    write_shards(config, target, open_input)
    return finish_shards(config, target)


def make_record_index(config: ShardConfig, target: Path, open_input: OpenInput) -> ShardPlan:
    """Writes the record index and the plan, unless they exist.

    Raises:
        UforkError: as `shard`.
    """
    work = WorkFolder(target)
    work.claim(config)
    if work.plan.exists():
        return ShardPlan.load(work.plan)
    try:
        source = open_input()
        build_record_index(work.record_index, source)
    except InputError:
        work.release()
        raise
    plan = make_plan(work.plan, config, RecordIndex(work.record_index), source)
    _logger.info("%s: %d records in %d jobs of %d", target, plan.num_records, plan.num_jobs, plan.job_records)
    return plan


def fingerprint_records(config: ShardConfig, target: Path, open_input: OpenInput, share: Share = WHOLE) -> None:
    """Writes the missing fingerprints of `share`, if duplicates are dropped. Call `make_record_index` first.

    Raises:
        UforkError: as `shard`.
    """
    if config.duplicates.wanted:
        plan = ShardPlan.load(WorkFolder(target).plan)
        fingerprints(config, target, open_input, share.jobs(fingerprint_chunks(plan.num_records)))


def write_shards(config: ShardConfig, target: Path, open_input: OpenInput, share: Share = WHOLE) -> None:
    """Runs the jobs of `share` that are not done. All tasks must have finished `fingerprint_records` before.

    Raises:
        ShardError: fingerprints are missing.
        UforkError: as `shard`.
    """
    work = WorkFolder(target)
    work.claim(config)
    plan = ShardPlan.load(work.plan)
    if config.duplicates.wanted:
        find_duplicates(config, target, plan.num_records)
    share_jobs = share.jobs(plan.num_jobs)
    jobs = [job for job in share_jobs if load_done(work, job) is None]
    start = partial(ShardJobs, config, target, open_input)
    num_records = sum(len(plan.positions(job)) for job in jobs)
    progress, reached = Progress("shards", unit="records", total=num_records), 0
    with closing(run_jobs(jobs, start, num_workers=config.num_workers)) as results:
        for number, (job, result) in enumerate(results, start=1):
            reached += result.selection.num_records
            progress.reach(reached, f"job {job} done, {number} of {len(jobs)}")
    progress.finish(
        reached, f"{len(jobs)} jobs done, {len(share_jobs) - len(jobs)} were already done, {plan.num_jobs} in total"
    )
