"""Items that other processes make ahead: in turn, ended with the run, and never waited for in vain."""

import multiprocessing
import os
import signal
import time
from functools import partial
from itertools import islice

import pytest
import torch

from tests.tiny import tiny_tokenizer, write_codes_source
from ufork.data.config import DataConfig, SourceConfig
from ufork.data.loader import IGNORED_SIGNALS, load_ahead
from ufork.data.stream import TrainingStream
from ufork.errors import LoaderError, ShardError
from ufork.vocabulary import Task


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ufork.data.stream"])
    return context


def loaded(make, context, *, num_workers=2, timeout_seconds=60):
    return load_ahead(make, num_workers=num_workers, context=context, ahead=2, timeout_seconds=timeout_seconds)


def numbered(worker, num_workers):
    """Item, process, and a tensor that travels through shared memory."""
    for number in range(worker, 12, num_workers):
        yield number, os.getpid(), torch.full((4,), number)


def test_items_come_in_turn_from_as_many_processes(context):
    items = list(loaded(numbered, context, num_workers=3))
    assert [number for number, _, _ in items] == list(range(12))
    assert len({process for _, process, _ in items}) == 3
    assert all(tensor.tolist() == [number] * 4 for number, _, tensor in items)


def raising(worker, num_workers):
    yield "first"
    raise ShardError("X.tar: cut off")


def test_an_error_of_ours_arrives_as_it_was_raised(context):
    items = loaded(raising, context, num_workers=1)
    assert next(items) == "first"
    with pytest.raises(ShardError, match=r"^X\.tar: cut off$"):
        next(items)


def mistaken(worker, num_workers):
    yield 1 / worker


def test_any_other_error_stays_what_it_is(context):
    with pytest.raises(ZeroDivisionError):
        next(loaded(mistaken, context))


def killed_after(count, worker, num_workers):
    for number in range(count):
        yield number, os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_ends_the_run_in_seconds(context):
    items = loaded(partial(killed_after, 1), context, num_workers=1)
    start = time.monotonic()
    with pytest.raises(LoaderError, match=r"loader process 0 \(pid \d+\): gone, exit code -9"):
        list(items)
    assert time.monotonic() - start < 10


def hanging(worker, num_workers):
    yield "first"
    time.sleep(1000)


def test_a_worker_that_hangs_ends_the_run_after_its_time(context):
    items = loaded(hanging, context, num_workers=1, timeout_seconds=1)
    with pytest.raises(LoaderError, match="made nothing in data.worker_timeout_seconds=1"):
        list(items)


def endless(worker, num_workers):
    while True:
        yield os.getpid()


def test_signals_to_stop_are_the_ranks_and_closing_ends_the_workers(context):
    items = loaded(endless, context)
    processes = {next(items), next(items)}
    for process in processes:
        for number in IGNORED_SIGNALS:
            os.kill(process, number)
    assert set(islice(items, 20)) == processes
    items.close()
    deadline = time.monotonic() + 20
    while any(map(_lives, processes)):
        assert time.monotonic() < deadline, "a worker outlives its iterator"
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


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
        global_batch_size=dict.fromkeys(Task, 12),
        replica=0,
        num_replicas=2,
        folder=folder,
        seed=3,
        context=context,
    )


def ids_of(step):
    return [sequence.sample_ids for task in Task for sequence in step[task]]


def test_rows_and_state_are_the_same_whoever_makes_them(folder, context):
    """From a state taken with rows made ahead, other numbers of workers go on as one undisturbed stream."""
    undisturbed = stream(folder, context)
    expected = [undisturbed.next_step() for _ in range(8)]
    state, step = None, 0
    for num_workers in (2, 0, 3, 1):
        going_on = stream(folder, context, num_workers=num_workers)
        if state:
            going_on.restore(with_all_lanes(state, undisturbed), origin="saved")
        for _ in range(2):
            sequences = going_on.next_step()
            assert ids_of(sequences) == ids_of(expected[step]), (num_workers, step)
            for task in Task:
                for sequence, other in zip(sequences[task], expected[step][task], strict=True):
                    assert torch.equal(sequence.codes_IC, other.codes_IC) and sequence.seed == other.seed
            step += 1
        state = going_on.state()
        going_on.close()
    assert state == undisturbed.state()


def with_all_lanes(state, stream):
    """The other replica's lanes do not matter here."""
    others = {lane: (0,) for lane in range(stream.num_lanes)}
    return state.model_copy(update={"taken": {task: others | dict(state.taken[task]) for task in Task}})
