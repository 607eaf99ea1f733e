"""A stage's ranks: they meet, sum and gather; one that is gone or hangs is an error in time, never a hang."""

import dataclasses
import os
import time

import pytest
from ranks import run_on_ranks

from ufork.errors import PeerError
from ufork.parallel.address import RankAddress
from ufork.parallel.world import join_world


def run_together(address: RankAddress):
    with join_world(address, timeout_seconds=60) as world:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        sums = world.sum(world.rank + 1, 1e-12 + 1e3 * world.rank)
        return world.is_leader, [os.environ[name] for name in names], sums, world.gather({"rank": world.rank})


def test_ranks_sum_in_double_precision_and_gather_in_their_order():
    outcomes = run_on_ranks(run_together, 2)
    gathered = [{"rank": 0}, {"rank": 1}]
    assert outcomes == [
        (True, ["0", "0", "2"], [3.0, 1e3 + 2e-12], gathered),
        (False, ["1", "1", "2"], [3.0, 1e3 + 2e-12], gathered),
    ]


def test_one_rank_is_a_world_too():
    assert run_on_ranks(run_together, 1) == [(True, ["0", "0", "1"], [1.0, 1e-12], [{"rank": 0}])]


def run_without_peer(address: RankAddress, fault: str):
    """Rank 1 is gone or hangs; rank 0 tells its error and how long it took."""
    try:
        with join_world(address, timeout_seconds=2) as world:
            world.sum(1.0)
            if world.rank == 1:
                time.sleep(5 if fault == "hangs" else 0)
                return None
            began = time.monotonic()
            world.sum(1.0)
    except PeerError as error:
        return str(error), time.monotonic() - began


@pytest.mark.parametrize("fault", ["is gone", "hangs"])
def test_a_peer_that_does_not_answer_is_an_error_within_the_timeout(fault):
    (message, seconds), _ = run_on_ranks(run_without_peer, 2, fault)
    assert "rank 0 of 2: summing the step's figures failed" in message
    assert seconds < 4.5


def run_alone(address: RankAddress):
    began = time.monotonic()
    with pytest.raises(PeerError, match=f"meeting at 127.0.0.1:{address.master_port} failed"):
        with join_world(dataclasses.replace(address, world_size=2), timeout_seconds=1):
            pass
    return time.monotonic() - began


def test_a_rank_that_nobody_joins_gives_up_within_the_timeout():
    (seconds,) = run_on_ranks(run_alone, 1)
    assert seconds < 10
