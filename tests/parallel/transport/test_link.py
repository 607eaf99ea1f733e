"""Links between trunk and branches: where a packed sequence travels, and which pairs of ranks have to be connected."""

from types import SimpleNamespace

import pytest
import torch

from tests.parallel.transport.test_bridge import bridges, in_threads  # noqa: F401 (a fixture)
from tests.tiny import DIMENSIONS, packed_sequence
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import BRANCHES, Stage, make_layout, num_ranks_of
from ufork.parallel.schedule.actions import Action, Pass
from ufork.parallel.tracing.trace import Tracer
from ufork.parallel.transport.bridge import Channel
from ufork.parallel.transport.link import Link, TransferFormat, linked_pairs
from ufork.parallel.transport.packed_sequence_format import PackedSequenceFormat
from ufork.vocabulary import Task

SEQ_LEN, HIDDEN_SIZE = 24, 8
FORMAT = TransferFormat(
    sequences=PackedSequenceFormat(seq_len=SEQ_LEN, codes_per_position=DIMENSIONS.codes_per_position),
    hidden_size=HIDDEN_SIZE,
    dtype=torch.float32,
)
FORWARD = Action(Pass.FORWARD, Task.GENERATION, 0)


def test_a_packed_sequence_travels_on_the_host_and_is_moved_to_the_device_once_it_has_arrived(bridges):  # noqa: F811
    trunk, generation = in_threads(*(lambda b=bridge: Link(b, FORMAT, None, Tracer()) for bridge in bridges))
    sequence = packed_sequence(Task.GENERATION, texts=[[5, 6, 7]], seq_len=SEQ_LEN)
    hidden_TD = torch.zeros(SEQ_LEN, HIDDEN_SIZE, device="meta")

    def send():
        for transfer in trunk.send_hidden(FORWARD, hidden_TD, sequence):
            transfer.wait()

    _, (received_TD, received) = in_threads(send, lambda: generation.wait_for_hidden(generation.post_hidden(FORWARD)))
    assert received_TD.device == received.token_ids_T.device == received.codes_IC.device == torch.device("meta")
    assert received.num_targets == sequence.num_targets, "the header was read on the host"


def test_receives_are_posted_ahead_only_where_they_do_not_occupy_the_device(bridges):  # noqa: F811
    links = in_threads(*(lambda b=bridge: Link(b, FORMAT, None, Tracer()) for bridge in bridges))
    assert [link.receives_ahead for link in links] == [0, 0]


LAYOUTS = {
    "one rank a stage": ({}, (2, 4)),
    "trunk tp 2, branches tp 1": ({"trunk": {"tp": 2}}, (2, 4)),
    "wider branch": ({"generation": {"tp": 4}, "trunk": {"tp": 2}}, (2, 4)),
    "uneven dp": ({"trunk": {"dp": 2}, "generation": {"dp": 3}}, (2, 6)),
    "replicas that never meet": ({"trunk": {"dp": 4}, "understanding": {"dp": 2}, "generation": {"dp": 4}}, (4, 4)),
    "uneven everything": ({"trunk": {"tp": 2, "dp": 2}, "understanding": {"dp": 3}, "generation": {"tp": 2}}, (6, 2)),
    "no understanding": ({"trunk": {"tp": 2}, "generation": {"dp": 2}}, (0, 4)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_pairs_to_connect_are_those_that_send_to_each_other(name):
    shapes, sequences = LAYOUTS[name]
    config = LayoutConfig(kind="forked", **shapes)
    layout = make_layout(
        config, num_ranks=num_ranks_of(config), global_batch_size=dict(zip(Task, sequences, strict=True))
    )
    used = set()
    for rank in layout.ranks_of(Stage.TRUNK):

        def send(tensor, to, channel, what, *, rank=rank):
            if channel is Channel.HIDDEN:
                used.add((rank, to))

        bridge = SimpleNamespace(
            layout=layout, coordinate=layout.coordinates[rank], send=send, connect_pairs=lambda pairs: None
        )
        link = Link(bridge, FORMAT, None, Tracer())
        for task, number in layout.num_micro_batches(Stage.TRUNK).items():
            for index in range(number):
                action = Action(Pass.FORWARD, task, index)
                sequence = packed_sequence(task, texts=[[5, 6, 7]], seq_len=SEQ_LEN)
                link.send_hidden(action, torch.zeros(SEQ_LEN, HIDDEN_SIZE), sequence)
    assert linked_pairs(layout) == used
    assert {layout.coordinates[branch].stage for _, branch in used} == {
        BRANCHES[task] for task in layout.global_batch_size
    }
