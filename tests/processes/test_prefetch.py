"""Items that other processes make ahead: they come in turn, and no failure of a worker blocks the parent."""

import multiprocessing
import os
import signal
import time
from functools import partial
from itertools import islice

import pytest
import torch

from tests.processes.stopping import stop_in_the_middle_of_sending
from ufork.errors import LoaderError, ShardError
from ufork.processes.prefetch import IGNORED_SIGNALS, prefetch


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ufork.processes.prefetch", "torch", "tests.tiny"])
    return context


def loaded(make, context, *, num_workers=2, timeout_seconds=60):
    return prefetch(make, num_workers=num_workers, context=context, ahead=2, timeout_seconds=timeout_seconds)


def numbered(worker, num_workers):
    """Item, process, and a tensor."""
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


def test_a_ufork_error_arrives_as_it_was_raised(context):
    items = loaded(raising, context, num_workers=1)
    assert next(items) == "first"
    with pytest.raises(ShardError, match=r"(?m)^X\.tar: cut off$"):
        next(items)


def mistaken(worker, num_workers):
    yield 1 / worker


def test_any_other_error_keeps_its_type(context):
    with pytest.raises(ZeroDivisionError):
        next(loaded(mistaken, context))


def killed_after(count, worker, num_workers):
    for number in range(count):
        yield number, os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_ends_the_run_in_seconds(context):
    items = loaded(partial(killed_after, 1), context, num_workers=1)
    start = time.monotonic()
    with pytest.raises(LoaderError, match=r"loader process 0 \(pid \d+\) died by SIGKILL, probably killed by"):
        list(items)
    assert time.monotonic() - start < 10


def hanging(worker, num_workers):
    yield "first"
    time.sleep(1000)


def test_a_worker_that_hangs_ends_the_run_after_its_time(context):
    items = loaded(hanging, context, num_workers=1, timeout_seconds=1)
    with pytest.raises(
        LoaderError, match=r"loader process 0 \(pid \d+\) sent nothing for 1 s, data.worker_timeout_seconds=1"
    ):
        list(items)


def stopping(worker, num_workers):
    stop_in_the_middle_of_sending()
    yield bytes(1000)


def test_a_worker_that_stops_while_sending_ends_the_run_after_its_time(context):
    items = loaded(stopping, context, num_workers=1, timeout_seconds=1)
    start = time.monotonic()
    with pytest.raises(LoaderError, match=r"loader process 0 \(pid \d+\) stopped in the middle of sending for 1 s"):
        next(items)
    assert time.monotonic() - start < 10


def unpicklable(worker, num_workers):
    yield "first"
    yield lambda: None


def test_an_item_that_cannot_be_sent_is_an_error_of_the_worker(context):
    items = loaded(unpicklable, context, num_workers=1)
    assert next(items) == "first"
    with pytest.raises(Exception, match="lambda"):
        next(items)


def endless(worker, num_workers):
    while True:
        yield os.getpid()


def test_workers_ignore_stop_signals_and_closing_ends_them(context):
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
