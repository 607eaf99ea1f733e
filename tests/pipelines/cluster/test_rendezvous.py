"""Nodes that cannot exchange data are told from those that met nobody because of them; nodes are threads."""

import os
import threading
import time

import pytest
import torch.distributed as dist

from pipelines.cluster import exchange as exchange_module
from pipelines.cluster import rendezvous as rendezvous_module
from pipelines.cluster.exchange import ExchangeGroup, Measurements, exchange
from pipelines.cluster.rendezvous import rendezvous
from pipelines.launch.ranks import free_port
from ufork.errors import PeerError
from ufork.parallel.rank_environment import RankEnvironment

MEASURED = Measurements(clock_offset_seconds=0.0, all_reduce_seconds=0.001)


class Network:
    """Stands in for NCCL: a group that has a faulty or dead node fails on all its nodes."""

    def __init__(self, faulty, dies=frozenset()):
        self.faulty, self.dies = faulty, dies
        self.groups = {}
        self.lock = threading.Condition()

    def exchange_of(self, rank):
        def run(group: ExchangeGroup) -> Measurements:
            if rank in self.dies:
                raise SystemExit  # ends the thread
            with self.lock:
                members = self.groups.setdefault(group.prefix, set())
                members.add(rank)
                self.lock.notify_all()
                complete = self.lock.wait_for(lambda: len(members) == group.size, timeout=group.timeout_seconds)
            if members & self.faulty or not complete:
                raise PeerError("NCCL hangs", timed_out=True)
            return MEASURED

        return run


def met(num_nodes, *, faulty=frozenset(), unfit=frozenset(), absent=frozenset(), dies=frozenset(), timeout_seconds=5):
    """Returns what each node has found out; None for absent ones."""
    port, network, found = free_port(), Network(faulty, dies), [None] * num_nodes
    nodes = [f"n{rank}" for rank in range(num_nodes)]

    def run(rank):
        rank_env = RankEnvironment(
            rank=rank, world_size=num_nodes, local_rank=0, master_address="127.0.0.1", master_port=port
        )
        found[rank] = rendezvous(
            rank_env,
            nodes,
            network.exchange_of(rank),
            fit=rank not in unfit,
            on_gpu=False,
            timeout_seconds=timeout_seconds,
            arrival_seconds=2 if absent else 30,
        )

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num_nodes) if rank not in absent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_nodes_that_exchange_data_are_measured_and_without_fault():
    for found in met(3):
        assert (found.measured, found.fault, found.missed, found.unreached) == (MEASURED, "", "", ())


@pytest.mark.parametrize("faulty", [0, 3])
def test_one_node_that_cannot_exchange_data_is_at_fault_alone(faulty):
    found = met(5, faulty={faulty})
    assert [bool(each.fault) for each in found] == [rank == faulty for rank in range(5)]
    assert not any(each.missed for each in found)
    fault = found[faulty].fault
    assert fault.startswith("cannot exchange data with n") and "NCCL hangs; others can, among them" in fault
    assert all(each.measured for rank, each in enumerate(found) if rank != faulty)


def test_two_nodes_that_cannot_exchange_data_know_no_fault():
    for found in met(2, faulty={1}):
        assert not found.fault and found.missed.startswith("cannot exchange data with n")


def test_an_unfit_node_takes_no_part_and_hinders_nobody():
    found = met(3, unfit={1})
    assert [each.measured for each in found] == [MEASURED, None, MEASURED]
    assert not any(each.fault or each.missed for each in found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_node_that_dies_during_an_exchange_is_named_by_the_others(monkeypatch):
    monkeypatch.setattr(rendezvous_module, "START_SECONDS", 0.0)
    found = met(3, dies={1}, timeout_seconds=1)
    assert found[1] is None
    for each in (found[0], found[2]):
        assert (each.measured, each.fault, each.missed, each.unreached) == (MEASURED, "", "", ("n1",))


def test_a_node_that_does_not_arrive_is_named_and_the_others_exchange_data():
    found = met(3, absent={2})
    for each in found[:2]:
        assert (each.measured, each.missed, each.unreached) == (MEASURED, "did not reach n2", ("n2",))


def test_a_first_node_that_does_not_arrive_is_named():
    found = met(2, absent={0})
    assert found[1].missed.startswith("did not reach n0") and found[1].unreached == ("n0",)


def test_an_exchange_that_hangs_is_ended_in_time(tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(exchange_module.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(exchange_module, "START_SECONDS", 0.5)
    group = ExchangeGroup(host="", port=1, prefix="", rank=0, size=2, on_gpu=True, timeout_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(PeerError, match="NCCL hangs"):
        exchange(group, {"PATH": "/bin"})
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_processes_exchange_data_and_a_group_without_its_peer_fails():
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    groups = [
        ExchangeGroup(host="127.0.0.1", port=port, prefix="x", rank=rank, size=2, on_gpu=False, timeout_seconds=30)
        for rank in range(2)
    ]
    measured = [None, None]

    def run(rank):
        measured[rank] = exchange(groups[rank], os.environ)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(abs(each.clock_offset_seconds) < 1 and each.all_reduce_seconds > 0 for each in measured)
    with pytest.raises(PeerError, match="gloo"):
        exchange(groups[0].model_copy(update={"prefix": "alone", "timeout_seconds": 2}), os.environ)
    del store
