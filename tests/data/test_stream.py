"""The packed sequences of a step: the same on any number of ranks, and skipped samples are counted."""

import dataclasses
import json
import logging
from collections import Counter

import numpy as np
import pytest
import torch

from tests.tiny import CODEC_SIZES, tiny_tokenizer, write_codes_source
from ufork.data import task_stream
from ufork.data.config import SKIPPED_BEFORE_LIMIT, DataConfig, SourceConfig
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.sample import Sample
from ufork.data.shards.writer import ShardWriter, finish_source, start_source
from ufork.data.stream import TrainingStream
from ufork.errors import ConfigError, SampleError, ShardError
from ufork.vocabulary import DROPPED_PROMPT, Task

SEQUENCES = {Task.UNDERSTANDING: 4, Task.GENERATION: 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_codes_source(folder / "one", num_samples=50)
    write_codes_source(folder / "two", num_samples=20, seed=1)
    return folder


def stream(
    folder,
    *,
    sources=("one", "two"),
    sequences=None,
    replica=0,
    num_replicas=1,
    seed=3,
    skipped_samples_folder=None,
    **data,
):
    mixture = tuple(SourceConfig(folder=name, weight=1 + i) for i, name in enumerate(sources))
    return TrainingStream(
        DataConfig(**{"understanding": mixture, "generation": mixture, "seq_len": 200, "num_lanes": 4} | data),
        tiny_tokenizer(),
        codec=CODEC_SIZES,
        global_batch_size=sequences or SEQUENCES,
        replica=replica,
        num_replicas=num_replicas,
        folder=folder,
        seed=seed,
        skipped_samples_folder=skipped_samples_folder,
    )


def job_sequences(folder, num_replicas, num_steps=4):
    """All packed sequences of the job's first steps, in the order that one rank would have them."""
    replicas = [stream(folder, replica=replica, num_replicas=num_replicas) for replica in range(num_replicas)]
    sequences = []
    for _ in range(num_steps):
        steps = [replica.next_step() for replica in replicas]
        for task in Task:
            sequences += [
                sequence
                for sequence_of_each in zip(*(step[task] for step in steps), strict=True)
                for sequence in sequence_of_each
            ]
    return sequences


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_sequences_are_those_of_one_rank(folder, num_replicas):
    sequences, expected = job_sequences(folder, num_replicas), job_sequences(folder, 1)
    assert len(sequences) == len(expected) == 48
    for sequence, other in zip(sequences, expected, strict=True):
        for name, value in vars(sequence).items():
            other_value = getattr(other, name)
            assert torch.equal(value, other_value) if torch.is_tensor(value) else value == other_value, name


def lanes_of(opened, task=Task.GENERATION):
    return opened._maker().streams[task]


def test_each_sample_is_in_one_sequence_per_epoch(folder):
    lanes = lanes_of(stream(folder, sources=["one"]))
    seen = Counter()
    for lane in range(4):
        ids = []
        share = len(lanes.mixture.share(lane, 0))
        while len(ids) < share:
            ids += lanes.next_sequence(lane).sample_ids
        seen.update(ids[:share])
    assert seen == Counter(f"one-generation-{number}" for number in range(50))


def test_sequences_are_as_full_as_their_order_allows(folder):
    lane = lanes_of(stream(folder), Task.UNDERSTANDING)
    sequence, following = lane.next_sequence(0), lane.next_sequence(0)
    first_of_following = int(following.segment_starts_S1[1])
    assert sequence.num_real_tokens <= 200 < sequence.num_real_tokens + first_of_following


@pytest.mark.parametrize(("share", "expected"), [(0.0, False), (1.0, True)])
def test_prompts_are_dropped_in_generation_only(folder, share, expected):
    step = stream(folder, prompt_dropout=share).next_step()
    null = tiny_tokenizer().id_of(DROPPED_PROMPT)
    for sequence in step[Task.GENERATION]:
        assert int((sequence.token_ids_T == null).sum()) == expected * len(sequence.sample_ids)
    assert not any((sequence.token_ids_T == null).any() for sequence in step[Task.UNDERSTANDING])


def sample_of(name, prompt):
    text = dict(id=name, task=Task.GENERATION, source="bad", licence="", prompt=prompt)
    return Sample(**text, codes=np.ones((2, 2, 3), np.uint16))


def source_of(folder, samples):
    """A finished source of generation samples."""
    start_source(folder)
    with ShardWriter(folder, source=folder.name, split="train", task=Task.GENERATION, shard_samples=99) as writer:
        for sample in samples:
            writer.write(sample)
    words = dict(source=folder.name, split="train", licence="", attribution="", recipe="", skipped={}, details={})
    finish_source(folder, entries=writer.entries, **words)


def bad_source(folder, *, prompts):
    """A finished source of generation samples; the second one's codes cannot be decoded."""
    source_of(folder, [sample_of(f"bad-{number}", prompt) for number, prompt in enumerate(prompts)])
    (tar,) = folder.glob("*.tar")
    data = tar.read_bytes()
    second = data.index(b"\x93NUMPY", data.index(b"\x93NUMPY") + 1)
    tar.write_bytes(data[:second] + b"broken" + data[second + 6 :])


def test_skipped_samples_are_named_by_their_own_id(tmp_path):
    ids = ["cats/Tom: asleep.jpg", "two\nlines: (3 tokens)", "\u00e9t\u00e9"]
    samples = [sample_of(name, "") for name in ids] + [sample_of("good", "a dog")]
    samples[1] = dataclasses.replace(samples[1], prompt="a cat", codes=np.full((2, 2, 3), 16, np.uint16))
    source_of(tmp_path / "bad", samples)
    opened = stream(
        tmp_path,
        sources=["bad"],
        sequences={Task.GENERATION: 1},
        num_lanes=1,
        seq_len=60,
        skipped_samples_folder=tmp_path / "skipped",
    )
    for _ in range(3):
        assert set(opened.next_step()[Task.GENERATION][0].sample_ids) == {"good"}
    lines = [json.loads(line) for line in (tmp_path / "skipped/replica-00000.jsonl").read_text().splitlines()]
    assert {line["sample"] for line in lines} == set(ids)
    assert {line["source"] for line in lines} == {"bad-train-generation"}
    assert {(line["reason"].split()[0], line["detail"]) for line in lines} == {
        ("a", ""),
        ("its", "found 3 per position, up to 16"),
    }


def test_samples_that_cannot_be_used_are_counted_by_reason(tmp_path, caplog):
    bad_source(tmp_path / "bad", prompts=["a dog", "a cat", "x" * 300, "y" * 301, "", "a house", "a star"])
    sequences = stream(tmp_path, sources=["bad"], sequences={Task.GENERATION: 2}, num_lanes=1, seq_len=100)
    with caplog.at_level(logging.WARNING):
        ids = ()
        while len(ids) < 4 * 4:  # on average each skipped sample has come four times
            ids += sequences.next_step()[Task.GENERATION][0].sample_ids
    assert set(ids) == {"bad-0", "bad-5", "bad-6"}
    reasons = {reason: count for reason, count in sequences.skipped_samples.reasons.items()}
    assert len(reasons) == 3, "one reason for both that are too long"
    assert [reason for reason in reasons if "data.seq_len=100" in reason]
    assert [reason for reason in reasons if "codes.npy cannot be read" in reason]
    assert [reason for reason in reasons if "prompt that is not empty" in reason]
    assert len(caplog.records) == 3, "each reason is reported once"
    assert "bad-" in caplog.text


def test_skipped_samples_are_listed_in_a_file_and_too_many_end_the_run(tmp_path):
    bad_source(tmp_path / "bad", prompts=["a dog", "a cat", "", "a house"])
    data = {"sources": ["bad"], "sequences": {Task.GENERATION: 2}, "num_lanes": 1, "seq_len": 100}
    tolerant = stream(tmp_path, **data, max_skipped_share=0.6, skipped_samples_folder=tmp_path / "skipped_samples")
    while tolerant.skipped_samples.reasons.total() < 2 * SKIPPED_BEFORE_LIMIT:
        tolerant.next_step()
    named = [json.loads(line) for line in (tmp_path / "skipped_samples/replica-00000.jsonl").read_text().splitlines()]
    assert len(named) == tolerant.skipped_samples.reasons.total()
    assert {line["sample"].rpartition("sample ")[2] for line in named} == {"'000000001'", "bad-2"}
    strict = stream(tmp_path, **data, max_skipped_share=0.4)
    with pytest.raises(SampleError, match=r"of \d+ samples were skipped, more than data.max_skipped_share=0.4: .*npy"):
        for _ in range(SKIPPED_BEFORE_LIMIT):
            strict.next_step()
    assert strict.skipped_samples.reasons.total() >= SKIPPED_BEFORE_LIMIT


def test_a_source_without_a_usable_sample_ends_the_run_instead_of_looping(tmp_path):
    bad_source(tmp_path / "bad", prompts=["x" * 300, "y" * 300])
    with pytest.raises(SampleError, match="generation: no sample of the mixture can be used"):
        stream(
            tmp_path,
            sources=["bad"],
            sequences={Task.GENERATION: 2},
            num_lanes=1,
            seq_len=100,
            skipped_samples_folder=tmp_path / "skipped",
        ).next_step()
    listed = [
        json.loads(line)["sample"] for line in (tmp_path / "skipped/replica-00000.jsonl").read_text().splitlines()
    ]
    assert {name.rpartition("sample ")[2] for name in listed} == {"bad-0", "'000000001'"}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"num_lanes": 24}, r"two-train-understanding: 20 samples .* data\.num_lanes=24"),
    ],
)
def test_numbers_that_do_not_fit_are_named(folder, changes, fault):
    with pytest.raises(ConfigError, match=fault):
        stream(folder, **changes)


def test_a_task_with_batch_size_zero_needs_no_source(folder):
    only = stream(folder, sequences={Task.GENERATION: 4}, understanding=()).next_step()
    assert list(only) == [Task.GENERATION]


@pytest.mark.parametrize("damage", ["missing", "truncated", "truncated later"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    write_codes_source(tmp_path / "one", num_samples=8)
    (entry,) = [entry for entry in Manifest.load(tmp_path / "one").shards if entry.task is Task.GENERATION]
    shard = tmp_path / "one" / entry.file
    opened = stream(tmp_path, sources=["one"])
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:1024])
    with pytest.raises(ShardError, match=entry.file):
        (opened if damage == "truncated later" else stream(tmp_path, sources=["one"])).next_step()


def test_a_source_of_unusable_samples_is_not_read_to_its_end(folder, monkeypatch):
    monkeypatch.setattr(task_stream, "MAX_UNUSABLE_IN_A_ROW", 7)
    unusable = stream(folder, seq_len=5, num_lanes=1, sequences={Task.GENERATION: 1})
    with pytest.raises(SampleError, match=r"does not fit into data.seq_len=5 \((one|two)-generation-\d+\)"):
        unusable.next_step()
    maker = unusable._maker().streams[Task.GENERATION]
    with pytest.raises(SampleError):
        maker.next_sequence(0)
    assert len(maker.skipped) == 7
