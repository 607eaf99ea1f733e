"""The bridge's contract with NCCL, by a stand-in: a communicator per direction, waits without a time-out."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import make_layout
from ufork.parallel.transport.bridge import Bridge, Channel
from ufork.vocabulary import Task


class StandInNccl:
    """Records its calls."""

    made = []

    class Options:
        _timeout = None

    def __init__(self, store, rank, size, options):
        self.rank, self.ranks, self.timeout, self.calls = rank, size, options._timeout, []
        self.made.append(self)

    def size(self):
        return self.ranks

    def send(self, tensors, peer, tag):
        return self._note("send", peer, tag)

    def recv(self, tensors, peer, tag):
        return self._note("recv", peer, tag)

    def _note(self, *call):
        self.calls.append(call)
        return SimpleNamespace(wait=lambda: self.calls.append(("wait", *call)))


@pytest.fixture
def bridge(monkeypatch):
    monkeypatch.setattr(dist, "ProcessGroupNCCL", StandInNccl, raising=False)
    monkeypatch.setattr(StandInNccl, "made", [])
    sequences = {Task.UNDERSTANDING: 0, Task.GENERATION: 1}  # rank 1, understanding, is absent
    layout = make_layout(LayoutConfig(kind="forked"), num_ranks=3, global_batch_size=sequences)
    return Bridge(dist.HashStore(), layout, layout.coordinates[2], torch.device("cuda"), timeout_seconds=7)


def test_hidden_states_and_gradients_use_separate_communicators(bridge):
    buffer = torch.zeros(2)
    bridge.receive(buffer, 0, Channel.HIDDEN, "hidden states").wait()
    bridge.send(buffer, 0, Channel.GRADIENTS, "the gradient").wait()
    used = [group for group in StandInNccl.made if group.calls]
    assert [group.calls[0][0] for group in used] == ["recv", "send"]
    assert [group.calls[1][0] for group in used] == ["wait", "wait"], "the stream waits; nothing is timed on the host"
    assert len({id(group) for group in StandInNccl.made}) == 3, "sums, upwards, downwards"


def test_ranks_without_work_are_not_members_and_all_groups_time_out(bridge):
    for group in StandInNccl.made:
        assert (group.rank, group.ranks, group.timeout.total_seconds()) == (1, 2, 7)
    assert bridge.leader == 0 and not bridge.is_leader
