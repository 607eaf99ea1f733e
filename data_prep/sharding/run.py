"""From any collection to shards, by several processes or array tasks; what is done stays done however it ends.

    record_index   one pass over the input's text, and the plan of jobs       any task, whichever comes first
    fingerprints      fingerprints of all records, to find duplicates by        shared out among the tasks
    write       a shard of each task per job                              shared out among the tasks
    merge       data_prep/sharding/merge.py: manifest and attribution        once, when all jobs are done

The bytes follow from config and input alone: not from workers, tasks, or how often it was killed.
"""

import logging
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.sharding.config import ShardConfig
from data_prep.sharding.fingerprints import find_duplicates, fingerprint_chunks, fingerprints
from data_prep.sharding.job import OpenInput, ShardJobs, load_done
from data_prep.sharding.merge import merge_shards, report_on
from data_prep.sharding.plan import ShardPlan, make_plan
from data_prep.sharding.progress import Progress
from data_prep.sharding.record_index import RecordIndex, build_record_index
from data_prep.sharding.work_folder import WorkFolder
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.writer import finished_source
from ufork.errors import ConfigError
from ufork.processes.worker_pool import run_jobs

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Of the jobs of an array: every `of`-th one, from `task` on."""

    task: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.task < self.of:
            raise ConfigError(f"task {self.task} of {self.of}: tasks are numbered from 0 to one less than their number")

    def jobs(self, num_jobs: int) -> range:
        """Those that are this task's."""
        return range(self.task, num_jobs, self.of)


WHOLE = Share()
"""All of them."""


def shard(config: ShardConfig, target: Path, open_input: OpenInput) -> Manifest:
    """Makes all that is missing of the shards in `target`, and their manifest.

    Args:
        config: what they are made by.
        target: `{shards folder}/{source}/{split}`.
        open_input: opens what `config.input` names.

    Raises:
        ConfigError: `target` was begun with another config.
        InputError: the collection cannot be read.
        StorageError: `target` cannot be written.
        WorkerError: a process died.
    """
    finished = finished_source(target, config.digest())
    if finished is not None:
        _logger.info("%s: finished before, kept", target)
        return finished
    make_record_index(config, target, open_input)
    fingerprint_records(config, target, open_input)
    write_shards(config, target, open_input)
    manifest = merge_shards(config, target)
    report_on(target)
    return manifest


def make_record_index(config: ShardConfig, target: Path, open_input: OpenInput) -> ShardPlan:
    """Makes the record_index and the plan where they are missing.

    Raises:
        As `shard`.
    """
    work = WorkFolder(target)
    work.claim(config)
    if work.plan.exists():
        return ShardPlan.load(work.plan)
    source = open_input()
    build_record_index(work.record_index, source)
    plan = make_plan(work.plan, config, RecordIndex(work.record_index), source)
    _logger.info("%s: %d records in %d jobs of %d", target, plan.num_records, plan.num_jobs, plan.job_records)
    return plan


def fingerprint_records(config: ShardConfig, target: Path, open_input: OpenInput, share: Share = WHOLE) -> None:
    """Takes those fingerprints of `share` that are missing, after `make_record_index`; none where duplicates are kept.

    Raises:
        As `shard`.
    """
    if config.duplicates.wanted:
        plan = ShardPlan.load(WorkFolder(target).plan)
        fingerprints(config, target, open_input, share.jobs(fingerprint_chunks(plan.num_records)))


def write_shards(config: ShardConfig, target: Path, open_input: OpenInput, share: Share = WHOLE) -> None:
    """Does those jobs of `share` that are not done, after `make_record_index` and, by all tasks, `fingerprint_records`.

    Raises:
        As `shard`.
        ShardError: a part of the fingerprints is missing.
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
        reached, f"{len(jobs)} jobs done now, {len(share_jobs) - len(jobs)} before, of {plan.num_jobs} in all"
    )
