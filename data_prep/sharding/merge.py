"""Merges the results of all jobs into the manifest, and draws the report.

.work/done/*.json of every job  --merge_shards-->  TARGET/{report.json, manifest.json}
finished shards and report      --report_on----->  TARGET/{ATTRIBUTION.md, report.html, contact_sheet.png}
both, and the reasons of dropped records at the end: finish_shards
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from data_prep.report.contact_sheet import write_contact_sheet
from data_prep.report.drop_report import as_text, load_report, nothing_kept, save_report, write_report
from data_prep.report.selection import Selection
from data_prep.report.statistics import Statistics
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.job import JobDone, load_done
from data_prep.sharding.plan import ShardPlan
from data_prep.sharding.record_index import dropped_entries
from data_prep.sharding.work_folder import WorkFolder
from ufork.data.shards.manifest import Manifest, ShardEntry
from ufork.data.shards.writer import finish_source, write_attribution
from ufork.errors import ShardError
from ufork.files import DRAFT_SUFFIX, storage_errors

CONTACT_SHEET_FILE = "contact_sheet.png"
_NAMED_JOBS = 10

_logger = logging.getLogger(__name__)


def finish_shards(config: ShardConfig, target: Path) -> Manifest:
    """Writes the manifest and the report after all jobs; the log ends with the report.

    Raises:
        UforkError: as `merge_shards`.
    """
    manifest = merge_shards(config, target)
    report_on(target)
    _logger.info("%s:\n%s", target, as_text(*load_report(target)))
    return manifest


def merge_shards(config: ShardConfig, target: Path) -> Manifest:
    """Writes the manifest after all jobs. A second call writes the same files.

    Raises:
        InputError: no record was kept; names the reasons.
        ShardError: jobs are not done, which are named with the command that runs them; or their counts do not add up.
        StorageError: `target` cannot be written.
    """
    work = WorkFolder(target)
    plan = ShardPlan.load(work.plan)
    entries: list[ShardEntry] = []
    selection, statistics = Selection(), Statistics()
    for dropped in dropped_entries(work.record_index):
        selection.drop(dropped.id, dropped.reason)
    num_entries = selection.num_records + plan.num_records
    for done in _all_done(work, plan):
        entries += done.shards
        selection, statistics = selection + done.selection, statistics + done.statistics
    if selection.num_records != num_entries:
        raise ShardError(
            f"{target}: {selection.num_records} records are counted as kept or dropped, expected {num_entries}; delete"
            f" {work.folder} and run `ufork shard` again"
        )
    if not selection.kept:
        raise nothing_kept(selection, target)
    save_report(target, selection, statistics)
    manifest = finish_source(
        target,
        source=config.source,
        split=config.split,
        licence=config.licence,
        attribution=config.attribution,
        recipe=config.digest(),
        entries=sorted(entries, key=lambda entry: entry.task),
        skipped=selection.dropped,
        details={"input": config.input.model_dump(mode="json"), "records": plan.num_records},
    )
    _remove_drafts(target)
    return manifest


def report_on(target: Path) -> None:
    """Writes ATTRIBUTION.md, report.html and, last, contact_sheet.png for finished shards.

    Raises:
        ShardError: the shards are unfinished or damaged.
        StorageError: `target` cannot be written.
    """
    manifest = Manifest.load(target)
    write_attribution(target, [manifest])
    write_report(target, f"{manifest.source}, {manifest.split}")
    write_contact_sheet(target, target / CONTACT_SHEET_FILE)


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
            f"{work.target}: {len(missing)} of {plan.num_jobs} jobs are not done ({names}); run"
            f" `ufork shard write {work.target}` on any machine that can read the input"
        )


def _remove_drafts(target: Path) -> None:
    """Deletes temporary files of killed processes; all jobs are done, so no process is writing."""
    with storage_errors(target):
        for draft in target.glob(f"*{DRAFT_SUFFIX}"):
            draft.unlink(missing_ok=True)
