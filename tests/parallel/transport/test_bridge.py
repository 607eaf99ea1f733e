"""The bridge's host group and its data plane: what travels where, and who is a member of what."""

import dataclasses
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import make_layout
from ufork.parallel.transport.bridge import Bridge, Channel
from ufork.parallel.transport.data_plane import DataPlane
from ufork.vocabulary import Task

TIMEOUT_SECONDS = 7


class StandInNccl:
    """Records its calls, and moves nothing."""

    def __init__(self, store, rank, size, timeout, *, during_passes):
        self.rank, self.ranks, self.timeout, self.during_passes = rank, size, timeout, during_passes
        self.calls, self.ended = [], 0

    def size(self):
        return self.ranks

    def send(self, tensors, peer, tag):
        return self._note("send", peer, tensors[0].device.type)

    def recv(self, tensors, peer, tag):
        return self._note("recv", peer, tensors[0].device.type)

    def get_error(self):
        return SimpleNamespace(name="SUCCESS")

    def shutdown(self):
        self.ended += 1

    def _note(self, *call):
        self.calls.append(call)
        return SimpleNamespace(wait=lambda: self.calls.append(("wait", *call)), is_completed=lambda: True)


def in_threads(*functions):
    """Returns what each function returned."""
    results = [None] * len(functions)

    def run(number):
        results[number] = functions[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def bridges():
    """The bridges of a trunk and a generation rank, whose device is "meta"; rank 1, understanding, is absent."""
    sequences = {Task.UNDERSTANDING: 0, Task.GENERATION: 1}
    layout = make_layout(LayoutConfig(kind="forked"), num_ranks=3, global_batch_size=sequences)
    plane = DataPlane(connect=StandInNccl, record_event=lambda: SimpleNamespace(query=lambda: True))
    store = dist.HashStore()

    def open_bridge(rank):
        return Bridge(
            store,
            layout,
            layout.coordinates[rank],
            torch.device("meta"),
            timeout_seconds=TIMEOUT_SECONDS,
            data_plane=plane,
        )

    return in_threads(lambda: open_bridge(0), lambda: open_bridge(2))


def test_hidden_states_and_gradients_use_separate_groups(bridges):
    trunk, generation = bridges
    buffer = torch.zeros(2, device="meta")
    generation.receive(buffer, 0, Channel.HIDDEN, "hidden states").wait()
    generation.send(buffer, 0, Channel.GRADIENTS, "the gradient").wait()
    generation.send(buffer, 0, Channel.WEIGHTS, "a weight").wait()
    upwards, downwards = generation.device_groups
    assert [call[0] for call in upwards.calls] == ["recv", "wait", "send", "wait"]
    assert [call[0] for call in downwards.calls] == ["send", "wait"], "the stream waits; nothing is timed on the host"


def test_what_the_host_reads_does_not_pass_through_the_device(bridges):
    trunk, generation = bridges
    header = torch.tensor([3, 1])
    received = torch.zeros(2, dtype=header.dtype)
    _, (), (sums, _) = in_threads(
        lambda: trunk.send(header, 2, Channel.SEQUENCES, "a packed sequence").wait(),
        lambda: generation.receive(received, 0, Channel.SEQUENCES, "a packed sequence").wait() or (),
        lambda: in_threads(lambda: trunk.sum(1.0, 0.5), lambda: generation.sum(2.0, 0.5)),
    )
    assert torch.equal(received, header) and sums == [3.0, 1.0]
    assert not any(group.calls for bridge in bridges for group in bridge.device_groups)


def test_ranks_without_work_are_not_members(bridges):
    for place, bridge in enumerate(bridges):
        for group in bridge.device_groups:
            assert (group.rank, group.ranks, group.timeout.total_seconds()) == (place, 2, TIMEOUT_SECONDS)
            assert group.during_passes
    assert bridges[0].is_leader and bridges[1].leader == 0 and not bridges[1].is_leader


def test_a_group_for_after_the_passes_may_use_the_whole_device(bridges):
    assert not bridges[0].connect("tied embedding", (0, 2)).during_passes


def test_closing_releases_every_group_once(bridges):
    groups = [group for bridge in bridges for group in bridge.device_groups]
    in_threads(*(bridge.close for bridge in bridges))
    in_threads(*(bridge.close for bridge in bridges))
    assert [group.ended for group in groups] == [1, 1, 1, 1]


def test_pairs_are_connected_in_both_directions_of_both_groups_and_once(bridges):
    for bridge in bridges:
        bridge.connect_pairs([(0, 2), (2, 0)])
        bridge.connect_pairs([(0, 2)])
    trunk, generation = bridges
    for group in trunk.device_groups:
        assert [call for call in group.calls if call[0] != "wait"] == [("send", 1, "meta"), ("recv", 1, "meta")]
    for group in generation.device_groups:
        assert [call for call in group.calls if call[0] != "wait"] == [("recv", 0, "meta"), ("send", 0, "meta")]


def test_a_failure_of_the_device_that_a_wait_shows_is_no_lost_peer(bridges):
    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    bridge = bridges[0]
    transfer = bridge.receive(torch.zeros(1, device="meta"), 2, Channel.GRADIENTS, "the gradient")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        dataclasses.replace(transfer, work=SimpleNamespace(wait=fail)).wait()


@pytest.mark.parametrize("failure", [torch.AcceleratorError, torch.OutOfMemoryError])
def test_a_failure_of_the_device_at_the_start_of_a_transfer_is_no_lost_peer(bridges, failure):
    def fail(*_):
        raise failure("CUDA error: uncorrectable ECC error encountered")

    bridges[0].device_groups[0].send = fail
    with pytest.raises(failure, match="ECC"):
        bridges[0].send(torch.zeros(1, device="meta"), 2, Channel.HIDDEN, "hidden states")
