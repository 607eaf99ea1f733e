"""The end of making shards: what all jobs wrote and counted becomes the manifest.

.work/done/*.json of every job  ->  TARGET/manifest.json, ATTRIBUTION.md
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_prep.catalogue import dropped_by_reason
from data_prep.shard_config import ShardConfig
from data_prep.shard_job import JobDone, load_done
from data_prep.shard_plan import ShardPlan
from data_prep.work_folder import WorkFolder
from data_prep.writer import finish_source, storage_errors, write_attribution
from ufork.data.manifest import Manifest, ShardEntry
from ufork.errors import ShardError

_NAMED_JOBS = 10

_logger = logging.getLogger(__name__)


def merge_shards(config: ShardConfig, target: Path) -> Manifest:
    """Writes the manifest once all jobs are done; done again it writes the same.

    Raises:
        ShardError: names the jobs that are missing, and what makes them.
        StorageError: `target` cannot be written.
    """
    work = WorkFolder(target)
    plan = ShardPlan.load(work.plan)
    entries: list[ShardEntry] = []
    skipped = dropped_by_reason(work.catalogue)
    for done in _all_done(work, plan):
        entries += done.shards
        skipped.update(done.dropped)
    manifest = finish_source(
        target,
        source=config.source,
        split=config.split,
        licence=config.licence,
        attribution=config.attribution,
        recipe=config.digest(),
        entries=sorted(entries, key=lambda entry: entry.task),
        skipped=skipped,
        details={"input": config.input.model_dump(mode="json"), "records": plan.num_records},
    )
    write_attribution(target, [manifest])
    _remove_drafts(target)
    samples = Counter({str(entry.task): manifest.num_samples(entry.task) for entry in entries})
    _logger.info("%s: %s; left out: %s", target, _counts(samples), _counts(skipped) or "nothing")
    return manifest


def _all_done(work: WorkFolder, plan: ShardPlan) -> Iterator[JobDone]:
    missing = []
    for job in range(plan.num_jobs):
        done = load_done(work, job)
        if done is None:
            missing.append(job)
        elif not missing:
            yield done
    if missing:
        names = ", ".join(map(str, missing[:_NAMED_JOBS])) + (", ..." if len(missing) > _NAMED_JOBS else "")
        raise ShardError(
            f"{work.target}: {len(missing)} of {plan.num_jobs} jobs are not done ({names}); make them by"
            f" `ufork shard write {work.target}`, on any machine that sees the input"
        )


def _remove_drafts(target: Path) -> None:
    """What killed processes left; no job is at work any more."""
    with storage_errors(target):
        for draft in target.glob("*.part"):
            draft.unlink(missing_ok=True)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.most_common())
