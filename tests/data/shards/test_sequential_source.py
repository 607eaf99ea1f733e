"""Shards that are read from their start: every sample once, a window at a time, from any position."""

import gzip
import json

import numpy as np
import pytest
import webdataset

from ufork.data.shards import sequential_source as streamed_source
from ufork.data.shards.manifest import MANIFEST_FILE
from ufork.data.shards.sample import Sample
from ufork.data.shards.sequential_source import SequentialSource
from ufork.data.shards.source import ShardSource
from ufork.data.shards.writer import ShardWriter, finish_source, start_source
from ufork.errors import ShardError
from ufork.vocabulary import Task

WINDOW = 5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Shards of 12 samples, the last one of 6."""
    monkeypatch.setattr(streamed_source, "WINDOW_SAMPLES", WINDOW)
    start_source(tmp_path)
    with ShardWriter(tmp_path, source="s", split="train", task=Task.GENERATION, shard_samples=12) as writer:
        for number in range(30):
            text = {"id": f"s-{number}", "task": Task.GENERATION, "source": "s", "licence": "", "prompt": "a"}
            writer.write(Sample(**text, codes=np.full((2, 2, 3), number, np.uint16)))
    header = dict(source="s", split="train", licence="", attribution="", recipe="", skipped={}, details={})
    finish_source(tmp_path, entries=writer.entries, **header)
    return tmp_path


@pytest.fixture
def opened(monkeypatch):
    """Number of times that a shard was opened."""
    count, keyed_members = [0], streamed_source._keyed_members

    def counted(storage, file):
        count[0] += 1
        return keyed_members(storage, file)

    monkeypatch.setattr(streamed_source, "_keyed_members", counted)
    return count


def test_an_epoch_has_every_sample_once_and_needs_one_pass(folder, opened):
    source = SequentialSource(folder, Task.GENERATION)
    order = source.order(np.random.default_rng(3))
    assert sorted(order) == list(range(30)) and list(order) != list(range(30))
    for start in range(0, 30, 4):
        assert [sample.id for sample in source.read(order[start : start + 4])] == [
            f"s-{number}" for number in order[start : start + 4]
        ]
    assert opened == [3]


def test_interleaved_lanes_do_not_disturb_each_other(folder, opened):
    source = SequentialSource(folder, Task.GENERATION)
    order = source.order(np.random.default_rng(0))
    for position in range(10):
        numbers = [order[lane * 10 + position] for lane in range(3)]
        assert [sample.id for sample in source.read(numbers)] == [f"s-{number}" for number in numbers]
    assert opened[0] <= 5, "each shard once, and again where a lane begins inside one"


def test_reading_resumes_from_any_position(folder):
    order = SequentialSource(folder, Task.GENERATION).order(np.random.default_rng(1))
    indexed = ShardSource(folder, Task.GENERATION)
    for position in range(30):
        (sample,) = SequentialSource(folder, Task.GENERATION).read(order[position : position + 1])
        assert sample.id == indexed[order[position]].id


def test_a_shard_written_by_webdataset_is_read(folder):
    source = SequentialSource(folder, Task.GENERATION)
    samples = source.read(range(12))
    shard = folder / source.entries[0].file
    with webdataset.TarWriter(str(shard)) as writer:
        for sample in samples:
            writer.write({"__key__": sample.id, **sample.to_members()})
    again = streamed_source._keyed_members(source.storage, shard.name)
    assert [members for _, members in again] == [sample.to_members() for sample in samples]


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_shard_is_named(folder, damage):
    source = SequentialSource(folder, Task.GENERATION)
    shard = folder / source.entries[0].file
    data = shard.read_bytes()
    cut = len(data) // 2 // 512 * 512
    shard.write_bytes(data[:cut] if damage == "cut" else data[:cut] + b"x" * (len(data) - cut))
    with pytest.raises(ShardError, match=rf"{shard.name}: (cannot be read|ends after \d+ samples)"):
        source.read(range(12))


def test_samples_beyond_the_manifests_count_are_no_silent_loss(folder):
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["shards"][0]["samples"] = 11
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="goes on after 11 samples, the manifest says 11"):
        SequentialSource(folder, Task.GENERATION).read(range(11))


def test_a_compressed_tar_is_not_expanded(folder):
    source = SequentialSource(folder, Task.GENERATION)
    shard = folder / source.entries[0].file
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(ShardError, match=f"{shard.name}: cannot be read"):
        source.read([0])
