"""Ranks wait for the leader longer than any time-out while it shows that it lives; otherwise they say what is wrong."""

import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from ufork.errors import PeerError
from ufork.parallel.transport.leader_work import LeaderWork

TIMEOUT_SECONDS = 0.8


@pytest.fixture
def stores():
    """The job's store, as rank 0 serves it and as another rank sees it."""
    serving = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=9))
    seen = dist.TCPStore("127.0.0.1", serving.port, is_master=False, timeout=timedelta(seconds=9))
    return [serving, seen]


def work_on(store, name="the drawings"):
    return LeaderWork(SimpleNamespace(store=store, timeout_seconds=TIMEOUT_SECONDS, coordinate="rank 1"), name)


def waited_for(leader, stores):
    """Returns what the other rank's wait raised while `leader` was at work, and for how long it waited."""
    outcome = []

    def wait():
        start, error = time.monotonic(), None
        try:
            work_on(stores[1]).wait()
        except PeerError as raised:
            error = raised
        outcome.extend([error, time.monotonic() - start])

    waiting = threading.Thread(target=wait)
    waiting.start()
    leader(work_on(stores[0]))
    waiting.join(30)
    return outcome


def test_work_that_shows_that_it_lives_may_take_longer_than_the_timeout_and_waiting_logs_nothing(stores, capfd):
    def leader(work):
        with work.under_way():
            end = time.monotonic() + 3 * TIMEOUT_SECONDS
            while time.monotonic() < end:
                work.show_alive()
                time.sleep(0.01)

    error, seconds = waited_for(leader, stores)
    assert error is None and seconds > 2.5 * TIMEOUT_SECONDS
    assert capfd.readouterr().err == ""


def test_a_silent_leader_ends_the_wait_at_the_timeout(stores):
    error, _ = waited_for(lambda work: work.show_alive(), stores)
    assert "rank 1 waited for the drawings by the leader, which shows no sign of life for 0.8 s" in str(error)
    assert error.fields["timed_out"]


def test_a_leader_that_fails_ends_the_wait_at_once(stores):
    def leader(work):
        with pytest.raises(ZeroDivisionError), work.under_way():
            raise ZeroDivisionError

    error, _ = waited_for(leader, stores)
    assert "which has failed; see its log" in str(error)


def test_a_leader_that_is_gone_ends_the_wait(stores):
    server, theirs = stores
    stores.clear()
    held = [server]
    del server
    threading.Timer(0.2, held.clear).start()  # with rank 0 goes the store's server
    with pytest.raises(PeerError, match="rank 0 is gone"):
        work_on(theirs).wait()


def test_signs_of_life_are_few_however_often_they_are_shown(stores):
    work = work_on(stores[0])
    for _ in range(1000):
        work.show_alive()
    assert stores[0].add(work._signs, 0) <= 3


def test_work_of_another_name_is_other_work(stores):
    with work_on(stores[0], "first").under_way():
        pass
    work_on(stores[1], "first").wait()
    with pytest.raises(PeerError, match="second"):
        work_on(stores[1], "second").wait()
