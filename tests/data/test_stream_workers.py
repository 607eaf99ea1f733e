"""Packed sequences and the stream's state do not depend on the loader processes that make them."""

import multiprocessing

import pytest
import torch

from tests.tiny import CODEC_SIZES, tiny_tokenizer, write_codes_source
from ufork.data.config import DataConfig, SourceConfig
from ufork.data.stream import TrainingStream
from ufork.vocabulary import Task


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ufork.data.stream"])
    return context


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_codes_source(folder / "one", num_samples=40)
    return folder


def stream(folder, context, **data):
    sources = (SourceConfig(folder="one"),)
    return TrainingStream(
        DataConfig(understanding=sources, generation=sources, seq_len=60, num_lanes=12, **data),
        tiny_tokenizer(),
        codec=CODEC_SIZES,
        global_batch_size=dict.fromkeys(Task, 12),
        replica=0,
        num_replicas=2,
        folder=folder,
        seed=3,
        context=context,
    )


def ids_of(step):
    return [sequence.sample_ids for task in Task for sequence in step[task]]


def test_sequences_and_state_are_the_same_for_any_number_of_workers(folder, context):
    """Resumed from a state that was taken while sequences were made ahead, other numbers of workers change nothing."""
    undisturbed = stream(folder, context)
    expected = [undisturbed.next_step() for _ in range(8)]
    state, step = None, 0
    for num_workers in (2, 0, 3, 1):
        resumed = stream(folder, context, num_workers=num_workers)
        if state:
            resumed.restore(with_all_lanes(state, undisturbed), origin="saved")
        for _ in range(2):
            sequences = resumed.next_step()
            assert ids_of(sequences) == ids_of(expected[step]), (num_workers, step)
            for task in Task:
                for sequence, other in zip(sequences[task], expected[step][task], strict=True):
                    assert torch.equal(sequence.codes_IC, other.codes_IC) and sequence.seed == other.seed
            step += 1
        state = resumed.state()
        resumed.close()
    assert state == undisturbed.state()


def with_all_lanes(state, stream):
    """The other replica's lanes do not matter here."""
    others = {lane: (0,) for lane in range(stream.num_lanes)}
    return state.model_copy(update={"taken": {task: others | dict(state.taken[task]) for task in Task}})
