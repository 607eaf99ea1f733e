"""Shards hold every record once, with the same bytes for any number of processes, tasks and interruptions."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.report.drop_report import load_report
from data_prep.sharding.merge import merge_shards
from data_prep.sharding.run import Share, fingerprint_records, make_record_index, shard, write_shards
from tests.toy_input import kept_ids, opener, toy_shard_config
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.source import ShardSource
from ufork.errors import ConfigError, InputError, ShardError
from ufork.vocabulary import Task


def run(folder, **changes) -> Manifest:
    config = toy_shard_config(**changes)
    return shard(config, folder, opener(config))


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def ids(folder, task: Task) -> list[str]:
    source = ShardSource(folder, task)
    return [source[number].id for number in range(len(source))]


@pytest.fixture(scope="module", autouse=True)
def no_contact_sheet():
    """Skips the contact sheet, which would take most of the time here and has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.sharding.merge.report_on", lambda target: None)
        yield


@settings(max_examples=25)
@given(size=st.integers(1, 60), shard_samples=st.integers(1, 70), shuffle=st.booleans(), seed=st.integers(0, 5))
def test_every_kept_record_occurs_exactly_once_per_task(tmp_path_factory, size, shard_samples, shuffle, seed):
    folder = tmp_path_factory.mktemp("shards")
    run(folder, size=size, shard_samples=shard_samples, shuffle=shuffle, seed=seed)
    for task, expected in kept_ids(size).items():
        found = ids(folder, task)
        assert len(found) == len(expected) and set(found) == expected


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Shards that one process made without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def test_workers_do_not_change_the_bytes(whole, tmp_path):
    run(tmp_path, num_workers=3)
    assert contents(tmp_path) == contents(whole[0])


def test_array_tasks_and_a_merge_make_the_same_shards_as_one_run(whole, tmp_path):
    config = toy_shard_config()
    for task in (2, 0, 1):
        make_record_index(config, tmp_path, opener(config))
        write_shards(config, tmp_path, opener(config), Share(task, 3))
    merge_shards(config, tmp_path)
    assert contents(tmp_path) == contents(whole[0])
    merge_shards(config, tmp_path)
    assert contents(tmp_path) == contents(whole[0])


def test_merge_names_the_jobs_that_are_not_done_and_the_command(whole, tmp_path):
    config = toy_shard_config()
    make_record_index(config, tmp_path, opener(config))
    write_shards(config, tmp_path, opener(config), Share(0, 2))
    with pytest.raises(ShardError, match=rf"6 of 12 jobs are not done \(1, 3, .*ufork shard write {tmp_path}"):
        merge_shards(config, tmp_path)
    with pytest.raises(ShardError):
        Manifest.load(tmp_path)


def test_counts_that_do_not_add_up_are_an_error(tmp_path):
    config = toy_shard_config()
    make_record_index(config, tmp_path, opener(config))
    write_shards(config, tmp_path, opener(config))
    done = tmp_path / ".work/done/00000.json"
    values = json.loads(done.read_text())
    values["records"]["kept"] += 1
    done.write_text(json.dumps(values))
    with pytest.raises(ShardError, match="101 records are counted as kept or dropped, expected 100"):
        merge_shards(config, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    done.write_text("{cut")
    with pytest.raises(ShardError, match=r"1 of 12 jobs are not done \(0\)"):
        merge_shards(config, tmp_path)


def test_finished_jobs_are_not_repeated(tmp_path, monkeypatch):
    config = toy_shard_config()
    make_record_index(config, tmp_path, opener(config))
    write_shards(config, tmp_path, opener(config), Share(0, 2))
    lost = tmp_path / "generation-00004.tar"
    lost.unlink()
    monkeypatch.setattr("tests.toy_input.ToyInput.records", None)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    run(tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    assert {name for name in before if after[name] != before[name]} == {"understanding-00004.tar"}
    assert lost.exists() and len(after) > len(before)


def test_finished_shards_are_kept_and_another_config_is_refused(whole):
    folder, manifest = whole
    assert run(folder, num_workers=2) == manifest and (folder / "report.html").exists(), "a missing report is made"
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run(folder, num_workers=2) == manifest
    with pytest.raises(ConfigError, match="seed was 0, is 1"):
        run(folder, seed=1)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_a_folder_with_other_shards_is_refused(tmp_path):
    (tmp_path / "generation-00007.tar").touch()
    with pytest.raises(ConfigError, match="other shards, such as generation-00007.tar"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["generation-00007.tar"]


def test_the_manifest_counts_dropped_records_and_has_the_licence(whole):
    folder, manifest = whole
    assert manifest.skipped == {"no image and no text": 10, "image is gone": 11}
    assert manifest.licence == "CC-BY-4.0" and manifest.num_samples(Task.GENERATION) == 59
    assert len(ids(folder, Task.UNDERSTANDING)) == 79
    manifest.check(folder, deep=True)
    dropped = "".join(path.read_text() for path in sorted((folder / ".work" / "dropped").iterdir()))
    assert dropped.count("\n") == 11 and '"detail":"7: image is gone"' in dropped


def test_a_folder_in_which_nothing_could_be_made_takes_another_config(tmp_path):
    """F21: where no record is left after the filters either, no manifest is written."""
    with pytest.raises(InputError, match="has no entry"):
        run(tmp_path, size=0)
    with pytest.raises(InputError, match=r"no record could be kept; all 6 were dropped:\n +6 +100\.0%  text below"):
        run(tmp_path, size=6, filters={"min_text_chars": 1000})
    assert not (tmp_path / "manifest.json").exists()


def test_the_order_is_shuffled_by_the_seed_or_that_of_the_input(whole, tmp_path):
    run(tmp_path / "kept", shuffle=False)
    in_order = ids(tmp_path / "kept", Task.GENERATION)
    assert in_order == sorted(in_order, key=lambda name: int(name.rpartition("r")[2]))
    run(tmp_path / "other", seed=1)
    assert in_order != ids(whole[0], Task.GENERATION) != ids(tmp_path / "other", Task.GENERATION)


def test_shards_have_about_the_configured_size(tmp_path):
    manifest = run(tmp_path, size=400, shard_samples=None, shard_mb=0.05, shuffle=False)
    sizes = [entry.bytes for entry in manifest.shards if entry.task == Task.GENERATION]
    assert len(sizes) > 5 and all(30_000 < size < 60_000 for size in sizes[:-1])


@pytest.mark.parametrize(
    ("duplicates", "num_near"),
    [({"exact": True}, 0), ({"perceptual": True}, 0), ({"perceptual": True, "same_text": False}, 52)],
)
def test_filtered_records_and_duplicates_are_dropped_and_counted(tmp_path, duplicates, num_near):
    """All toy images look alike, so they are near duplicates of the first if texts are not compared."""
    manifest = run(tmp_path, duplicates=duplicates, filters={"min_text_chars": 10})
    unusable = {"image is gone": 11, "no image and no text": 10, "text below 10 characters": 6}
    assert manifest.skipped == unusable | ({"near duplicate": num_near} if num_near else {})
    selection, statistics = load_report(tmp_path)
    assert selection.kept == 100 - selection.dropped.total() == 73 - num_near
    assert statistics.num_samples == sum(entry.samples for entry in manifest.shards)


def test_missing_fingerprints_of_other_tasks_are_an_error(tmp_path):
    config = toy_shard_config(9000, duplicates={"exact": True})
    make_record_index(config, tmp_path, opener(config))
    fingerprint_records(config, tmp_path, opener(config), Share(0, 2))
    with pytest.raises(ShardError, match="chunk 1 has no fingerprints.*--step fingerprints"):
        write_shards(config, tmp_path, opener(config), Share(0, 2))


def start_program(folder, delay_seconds: float) -> subprocess.Popen:
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.toy_input", folder, "4000", str(delay_seconds)],
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_ten_times_it_still_writes_the_same_bytes(tmp_path):
    """Kills at startup and after a few jobs; every other time only the parent, whose workers must then exit."""
    moments, done = random.Random(0), tmp_path / "killed" / ".work" / "done"
    counts = [0]
    for kill in range(10):
        with start_program(tmp_path / "killed", 0.001) as program:
            awaited = counts[-1] + moments.choice((0, 0, 1, 3))
            while len(list(done.glob("*.json"))) < awaited and program.poll() is None:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.2))
            assert program.poll() is None, "finished before it was killed: increase the number of records"
            (os.kill if kill % 2 else os.killpg)(program.pid, signal.SIGKILL)
        counts.append(len(list(done.glob("*.json"))))
    assert 0 < counts[-1] < 72 and len(set(counts)) > 2, counts
    for name in ("killed", "undisturbed"):
        with start_program(tmp_path / name, 0) as program:
            assert program.wait(timeout=60) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    assert len(contents(tmp_path / "killed")) == 2 * 2 * 72 + 5
