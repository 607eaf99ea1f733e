"""After a failure, the ranks find out which of them is lost, wherever they wait."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from pipelines.launch import local_ranks
from tests.parallel.transport.test_stage_world import bridge_of
from tests.ranks import run_on_ranks
from ufork.errors import ConfigError, PeerError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import place_ranks
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.leader_work import LeaderWork
from ufork.parallel.transport.roll_call import ANSWER_SECONDS, find_lost
from ufork.parallel.transport.stage_world import POLL_SECONDS, join_world

TIMEOUT_SECONDS = 3.0
FORKED = LayoutConfig(kind="forked", trunk=StageShape(tp=2))
COORDINATES = place_ranks(FORKED, 4)
ALL_WAIT = dict.fromkeys(range(4), "")


def test_the_ranks_that_raised_come_first_and_those_that_do_not_answer_next():
    found = find_lost(COORDINATES, {0: "", 2: "read (stream.py:3)"}, [(0, ""), (3, "SampleError: empty text")])
    first, second = found.split("; ")
    assert first == "rank 3 (generation, replica 0 of 1, tp rank 0 of 1) raised SampleError: empty text"
    assert second == "rank 1 (trunk, replica 0 of 1, tp rank 1 of 2) does not answer, it died or hangs"


def test_a_rank_that_waits_for_no_other_is_at_fault_if_all_answer_unless_it_has_lost_a_peer_since():
    found = find_lost(COORDINATES, ALL_WAIT | {1: "read (stream.py:3)", 2: "late (step.py:9)"}, [(0, ""), (2, "")])
    assert (
        found == "rank 1 (trunk, replica 0 of 1, tp rank 1 of 2) waits for no other rank, it is in read (stream.py:3)"
    )


def test_ranks_that_all_wait_are_not_accused():
    assert find_lost(COORDINATES, ALL_WAIT, [(0, "")]) == "all ranks answer, and wait for each other"


def test_a_lost_node_of_many_ranks_is_a_short_message():
    found = find_lost(place_ranks(LayoutConfig(), 64), dict.fromkeys(range(56), ""), [(0, "")])
    assert found.startswith("rank 56 (") and found.endswith("; 4 more ranks do not answer") and len(found) < 500


def run_waiting(rank_env: RankEnvironment, place: str, faulty_rank: int, fault: str, folder: Path):
    """The faulty rank dies, stops or raises, and the others wait at `place`; writes their errors to `folder`."""
    began = time.monotonic()
    try:
        with join_world(rank_env, timeout_seconds=TIMEOUT_SECONDS) as world:
            bridge = bridge_of(world)
            bridge.sum(1.0)
            began = time.monotonic()
            if world.rank == faulty_rank:
                if fault == "raises":
                    raise ConfigError("a value is wrong")
                os.kill(os.getpid(), signal.SIGSTOP if fault == "stops" else signal.SIGKILL)
            if place == "sum":
                bridge.sum(1.0)
            elif place == "gather":
                bridge.gather(1)
            elif place == "finish":
                world.wait_until_finished("phase")
            else:
                LeaderWork(world, "drawing").wait()
    except PeerError as error:
        (folder / str(rank_env.rank)).write_text(f"{time.monotonic() - began:.1f} {error}")
        raise


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "faulty_rank", "fault"),
    [
        ("sum", 0, "stops"),
        ("sum", 1, "dies"),
        ("gather", 0, "stops"),
        ("gather", 2, "stops"),
        ("gather", 2, "raises"),
        ("finish", 0, "stops"),
        ("finish", 0, "raises"),
        ("leader's work", 0, "stops"),
        ("leader's work", 0, "dies"),
    ],
)
def test_a_lost_rank_is_named_wherever_the_others_wait(place, faulty_rank, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(local_ranks, "CONSEQUENCE_SECONDS", 2 * TIMEOUT_SECONDS)  # time for all ranks to report
    with pytest.raises((PeerError, ConfigError)) as raised:
        run_on_ranks(run_waiting, 4, place, faulty_rank, fault, tmp_path, timeout_seconds=40)
    said = {int(path.name): path.read_text().split(" ", 1) for path in tmp_path.iterdir()}
    assert said.keys() == {0, 1, 2, 3} - {faulty_rank}, raised.value
    for rank, (seconds, message) in said.items():
        cause = "raised ConfigError: a value is wrong" if fault == "raises" else "(does not answer|is lost).*"
        assert re.match(rf"rank {faulty_rank} \([^()]*\) {cause}: rank {rank} \(", message), message
        assert float(seconds) < 2 * TIMEOUT_SECONDS + POLL_SECONDS + ANSWER_SECONDS, message


def run_mistake(rank_env: RankEnvironment):
    began = time.monotonic()
    with pytest.raises(ConfigError, match="^a value is wrong$"), join_world(rank_env, timeout_seconds=60):
        raise ConfigError("a value is wrong")
    return time.monotonic() - began


def test_an_error_that_all_ranks_raise_is_raised_at_once_and_as_it_is():
    assert max(run_on_ranks(run_mistake, 3)) < ANSWER_SECONDS


def run_well(rank_env: RankEnvironment):
    with join_world(rank_env, timeout_seconds=60):
        pass
    return [thread.name for thread in threading.enumerate() if thread.name == "roll call"]


def test_no_rank_listens_for_the_call_after_the_job():
    assert run_on_ranks(run_well, 3) == [[]] * 3
