import os
import signal
import time

import pytest
import torch
import torch.distributed

from pipelines.launch import local_ranks
from tests.processes.stopping import stop_in_the_middle_of_sending
from tests.ranks import run_on_ranks
from ufork.errors import PeerError, ShardError


def run_sum(rank_env, base):
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://{rank_env.master_address}:{rank_env.master_port}",
        rank=rank_env.rank,
        world_size=rank_env.world_size,
    )
    total = torch.tensor([base + rank_env.rank])
    torch.distributed.all_reduce(total)
    torch.distributed.destroy_process_group()
    return total


def run_big_result(rank_env):
    return bytes(5_000_000)


def run_one_raises(rank_env, failing):
    if rank_env.rank == failing:
        raise ShardError("train-000003.tar is truncated at byte 512")
    time.sleep(60)


def run_one_is_killed_and_peers_notice(rank_env, failing):
    if rank_env.rank == failing:
        os.kill(os.getpid(), signal.SIGKILL)
    raise ConnectionError("connection closed by peer")


def run_one_hangs(rank_env, hanging):
    while rank_env.rank == hanging:
        time.sleep(0.1)


def run_one_stops_while_sending(rank_env, stopping):
    if rank_env.rank == stopping:
        stop_in_the_middle_of_sending()
    return bytes(1000)


def run_raises_unpicklable(rank_env):
    class LocalError(Exception):
        pass

    raise LocalError("seen only there")


def test_ranks_rendezvous_and_return_results_in_order():
    assert [total.item() for total in run_on_ranks(run_sum, 3, 10)] == [33, 33, 33]


def test_results_larger_than_a_pipe_arrive():
    assert [len(result) for result in run_on_ranks(run_big_result, 2)] == [5_000_000] * 2


def test_first_error_is_raised_as_it_was_and_the_others_are_ended():
    started = time.monotonic()
    with pytest.raises(ShardError, match="train-000003.tar is truncated") as caught:
        run_on_ranks(run_one_raises, 3, 1)
    assert time.monotonic() - started < 20
    assert "in run_one_raises" in caught.value.__notes__[0]
    assert str(caught.value.__cause__) == "rank 1: train-000003.tar is truncated at byte 512"


def test_killed_rank_is_named_rather_than_the_peers_that_noticed(monkeypatch):
    monkeypatch.setattr(local_ranks, "CONSEQUENCE_SECONDS", 30)  # a busy machine starts the killed rank late
    with pytest.raises(PeerError, match="^rank 2: died by SIGKILL"):
        run_on_ranks(run_one_is_killed_and_peers_notice, 3, 2)


@pytest.mark.slow  # the limit leaves a busy machine time to start ranks
def test_hanging_rank_is_named_shown_and_ended():
    with pytest.raises(PeerError, match=r"(?s)ranks \[1\] did not finish within 15 s.*in run_one_hangs"):
        run_on_ranks(run_one_hangs, 2, 1, timeout_seconds=15)


@pytest.mark.slow
def test_rank_that_stops_while_sending_its_result_is_named_and_ended():
    started = time.monotonic()
    with pytest.raises(PeerError, match=r"ranks \[1\] did not finish within 15 s"):
        run_on_ranks(run_one_stops_while_sending, 2, 1, timeout_seconds=15)
    assert time.monotonic() - started < 60


def test_error_that_cannot_be_sent_is_described():
    with pytest.raises(PeerError, match="(?s)rank [01]: LocalError: seen only there.*in run_raises_unpicklable"):
        run_on_ranks(run_raises_unpicklable, 2)


def test_a_free_port_is_none_that_an_outgoing_connection_could_take(tmp_path, monkeypatch):
    monkeypatch.setattr(local_ranks, "EPHEMERAL_PORTS", tmp_path / "range")
    first_outgoing = local_ranks.LOWEST_PORT + 500
    (tmp_path / "range").write_text(f"{first_outgoing}\t60999\n")
    assert all(local_ranks.LOWEST_PORT <= local_ranks.free_port() < first_outgoing for _ in range(20))


def test_without_ports_below_a_free_port_is_one_of_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(local_ranks, "EPHEMERAL_PORTS", tmp_path / "absent")
    assert local_ranks.free_port() > 1024
