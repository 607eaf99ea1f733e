"""Transfers between a trunk replica and branch replicas, split so that no rank sends or receives all of it.

    trunk replica, ranks 0..t-1                           branch replica, ranks 0..b-1
    hidden TD  -- n = max(t, b) chunks of T/n tokens -->  chunks joined, then gathered over the b ranks
    gradient   <-- the same chunks, in reverse ---------

Chunk s is on trunk rank s div (n/t) and on branch rank s div (n/b). The packed sequence itself (boundaries, labels,
codes: small) comes from the trunk replica's rank 0, and stays on the host until it has arrived.

A gradient's receive is posted when all is sent that the gradient needs: the sequences of all replicas of the branch's
micro-batch, which run together. Receives of hidden states are posted, on CPUs, some
micro-batches ahead, in the order of the schedule; on CUDA, where the host is ahead of the device anyway, when they are
needed. There a transfer is a kernel that runs until the peer has launched its side, and CUDA may make the host wait for
all running kernels when it loads a new one or allocates memory. So what a rank has launched must never need anything
that this rank has still to launch: neither directly, nor because the peer waits for what it has sent to this rank.

Shapes: T tokens, D hidden size.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ufork.parallel.layout import BRANCHES, Layout, MeshCoordinate, Stage
from ufork.parallel.layout_checks import require_divisible_seq_len
from ufork.parallel.schedule.actions import Action
from ufork.parallel.tracing.trace import Tracer
from ufork.parallel.transport.bridge import Bridge, Channel, Transfer
from ufork.parallel.transport.packed_sequence_format import PackedSequenceFormat
from ufork.vocabulary import PackedSequence

RECEIVES_AHEAD = 2
"""Micro-batches whose hidden states' receives are posted before they are needed, on CPUs."""


@dataclass(frozen=True, kw_only=True)
class TransferFormat:
    """Sizes and types of what is sent."""

    sequences: PackedSequenceFormat
    hidden_size: int
    dtype: torch.dtype
    trunk_is_sharded: bool = False
    """Whether a trunk rank holds only its own T/t tokens of the hidden states (sequence parallelism)."""


def chunks_of(coordinate: MeshCoordinate, *, other_tp: int) -> range:
    """Returns the numbers of the chunks, of max(own tp, other tp), that the rank at `coordinate` sends or receives."""
    own_tp = coordinate.shape.tp
    per_rank = max(own_tp, other_tp) // own_tp
    return range(coordinate.tp_rank * per_rank, (coordinate.tp_rank + 1) * per_rank)


def linked_pairs(layout: Layout) -> set[tuple[int, int]]:
    """Returns the ranks, of the trunk and of a branch, that send chunks to each other in a step."""
    trunk, pairs = layout.shapes[Stage.TRUNK], set()
    for task, sequences in layout.global_batch_size.items():
        branch = layout.shapes[BRANCHES[task]]
        num_chunks = max(trunk.tp, branch.tp)
        for trunk_replica, branch_replica in {(number % trunk.dp, number % branch.dp) for number in range(sequences)}:
            for number in range(num_chunks):
                trunk_rank, branch_rank = (number * shape.tp // num_chunks for shape in (trunk, branch))
                sender = layout.rank_at(Stage.TRUNK, dp_rank=trunk_replica, tp_rank=trunk_rank)
                pairs.add((sender, layout.rank_at(BRANCHES[task], dp_rank=branch_replica, tp_rank=branch_rank)))
    return pairs


Received = TypeVar("Received")


class ReceiveQueue(Generic[Received]):
    """Receives in a known order, of which `ahead` are always posted before they are needed."""

    def __init__(self, actions: Sequence[Action], post: Callable[[Action], Received], *, ahead: int):
        self._waiting, self._post, self._ahead = deque(actions), post, ahead
        self._posted: deque[tuple[Action, Received]] = deque()
        self._post_up_to(ahead)

    def take(self, action: Action) -> Received:
        """Returns what was posted for `action`, which must be the next in order."""
        self._post_up_to(1)
        expected, posted = self._posted.popleft()
        assert action == expected, f"{action} is run, but {expected} is the next to be received"
        self._post_up_to(self._ahead)
        return posted

    def _post_up_to(self, number: int) -> None:
        while self._waiting and len(self._posted) < number:
            action = self._waiting.popleft()
            self._posted.append((action, self._post(action)))


class SendQueue:
    """Sends under way, the oldest first; their tensors stay in memory until they were waited for."""

    def __init__(self) -> None:
        self._sends: deque[list[Transfer]] = deque()

    def add(self, transfers: list[Transfer]) -> None:
        """Adds the transfers of one micro-batch."""
        self._sends.append(transfers)

    def finish(self, *, leave: int = 0) -> None:
        """Waits until at most `leave` micro-batches are under way.

        Raises:
            PeerError: a receiver is gone or times out.
        """
        while len(self._sends) > leave:
            for transfer in self._sends.popleft():
                transfer.wait()


class Link:
    """One rank's end of the links between trunk and branches."""

    def __init__(self, bridge: Bridge, transfer_format: TransferFormat, tp_group: dist.ProcessGroup, tracer: Tracer):
        self.bridge, self.transfer_format, self.tp_group, self.tracer = bridge, transfer_format, tp_group, tracer
        self.layout, self.coordinate = bridge.layout, bridge.coordinate
        self.tp, self.dp = self.coordinate.shape.tp, self.coordinate.shape.dp
        require_divisible_seq_len(self.layout, transfer_format.sequences.seq_len)
        bridge.connect_pairs(linked_pairs(self.layout))

    @property
    def receives_ahead(self) -> int:
        """Micro-batches whose hidden states' receives are posted before they are needed."""
        return 0 if self.bridge.has_data_plane else RECEIVES_AHEAD

    @property
    def peer_dp(self) -> int:
        """Replicas of the trunk, the peers of a branch."""
        return self.layout.shapes[Stage.TRUNK].dp

    def send_hidden(self, action: Action, hidden_TD: Tensor, sequence: PackedSequence) -> list[Transfer]:
        """Starts to send a micro-batch to its branch: this rank's chunks, from tp rank 0 also the packed sequence.

        `sequence` is on the CPU, `hidden_TD` on the rank's device.
        """
        stage, replica = self._peer(action)
        sends = []
        if self.coordinate.tp_rank == 0:
            encoded = self.transfer_format.sequences.encode(sequence)
            for tp_rank in range(self.layout.shapes[stage].tp):
                peer = self.layout.rank_at(stage, dp_rank=replica, tp_rank=tp_rank)
                sends.append(
                    self.bridge.send(encoded, peer, Channel.SEQUENCES, f"the packed sequence of {action.micro_batch}")
                )
        what = f"hidden states of {action.micro_batch}"
        return sends + self._send_chunks(hidden_TD.detach(), stage, replica, Channel.HIDDEN, what)

    def post_hidden(self, action: Action) -> tuple[Tensor, Tensor, list[Transfer]]:
        """Returns buffers for a packed sequence and this rank's chunks of its hidden states, and their transfers."""
        stage, replica = self._peer(action)
        encoded = self.transfer_format.sequences.empty()
        sender = self.layout.rank_at(stage, dp_rank=replica, tp_rank=0)
        sequence = self.bridge.receive(
            encoded, sender, Channel.SEQUENCES, f"the packed sequence of {action.micro_batch}"
        )
        own_TD, transfers = self._post_chunks(stage, replica, Channel.HIDDEN, f"hidden states of {action.micro_batch}")
        return encoded, own_TD, [sequence, *transfers]

    def wait_for_hidden(self, posted: tuple[Tensor, Tensor, list[Transfer]]) -> tuple[Tensor, PackedSequence]:
        """Returns the whole hidden states TD and the packed sequence, both on the rank's device.

        Raises:
            PeerError: the packed sequence timed out; on CPUs, or they did.
        """
        encoded, own_TD, transfers = posted
        self._wait(transfers)
        sequence = self.transfer_format.sequences.decode(encoded)
        return self._gathered(own_TD), sequence.to(self.bridge.device)

    def send_gradient(self, action: Action, gradient_TD: Tensor) -> list[Transfer]:
        """Starts to send this rank's chunks of the gradient of a micro-batch's hidden states back to the trunk."""
        stage, replica = self._peer(action)
        return self._send_chunks(
            gradient_TD, stage, replica, Channel.GRADIENTS, f"the gradient of {action.micro_batch}"
        )

    def last_needed(self, action: Action) -> int:
        """Returns the last of this replica's micro-batches of the task that the gradient of `action` needs.

        The replicas of a branch run together, so the sequences of all of them have to arrive first.
        """
        trunk_dp, branch_dp = self.dp, self.layout.shapes[BRANCHES[action.task]].dp
        sequence = self.layout.sequence_number(self.coordinate, action.index)
        end = (sequence // branch_dp + 1) * branch_dp
        return (end - 1 - self.coordinate.dp_rank) // trunk_dp

    def post_gradient(self, action: Action) -> tuple[Tensor, list[Transfer]]:
        """Returns a buffer for this rank's chunks of a gradient, and the transfers that fill it."""
        stage, replica = self._peer(action)
        return self._post_chunks(stage, replica, Channel.GRADIENTS, f"the gradient of {action.micro_batch}")

    def wait_for_gradient(self, posted: tuple[Tensor, list[Transfer]]) -> Tensor:
        """Returns the gradient TD, under sequence parallelism only this rank's tokens of it; raises as above."""
        own_TD, transfers = posted
        self._wait(transfers)
        return own_TD if self.transfer_format.trunk_is_sharded else self._gathered(own_TD)

    def _peer(self, action: Action) -> tuple[Stage, int]:
        """Stage and replica at the other end, for the sequence that is this replica's micro-batch `action.index`."""
        sequence = self.layout.sequence_number(self.coordinate, action.index)
        stage = BRANCHES[action.task] if self.coordinate.stage is Stage.TRUNK else Stage.TRUNK
        return stage, sequence % self.layout.shapes[stage].dp

    def _send_chunks(
        self, values_TD: Tensor, stage: Stage, replica: int, channel: Channel, what: str
    ) -> list[Transfer]:
        values_TD = values_TD.to(self.transfer_format.dtype)
        tokens, first = self._chunk_tokens(stage), self._first_own_token()
        starts = [(number * tokens - first, peer) for number, peer in self._chunks(stage, replica)]
        return [
            self.bridge.send(values_TD[start : start + tokens].contiguous(), peer, channel, what)
            for start, peer in starts
        ]

    def _post_chunks(self, stage: Stage, replica: int, channel: Channel, what: str) -> tuple[Tensor, list[Transfer]]:
        chunks, tokens = self._chunks(stage, replica), self._chunk_tokens(stage)
        shape = (len(chunks) * tokens, self.transfer_format.hidden_size)
        own_TD = torch.empty(shape, dtype=self.transfer_format.dtype, device=self.bridge.device)
        buffers = own_TD.split(tokens)
        return own_TD, [
            self.bridge.receive(buffer, peer, channel, what) for buffer, (_, peer) in zip(buffers, chunks, strict=True)
        ]

    def _chunks(self, stage: Stage, replica: int) -> list[tuple[int, int]]:
        """Number of each chunk of this rank, and the rank that has it at the other end."""
        other_tp = self.layout.shapes[stage].tp
        per_other = max(self.tp, other_tp) // other_tp
        return [
            (number, self.layout.rank_at(stage, dp_rank=replica, tp_rank=number // per_other))
            for number in chunks_of(self.coordinate, other_tp=other_tp)
        ]

    def _chunk_tokens(self, stage: Stage) -> int:
        return self.transfer_format.sequences.seq_len // max(self.tp, self.layout.shapes[stage].tp)

    def _first_own_token(self) -> int:
        sharded = self.coordinate.stage is Stage.TRUNK and self.transfer_format.trunk_is_sharded
        return self.coordinate.tp_rank * self.transfer_format.sequences.seq_len // self.tp if sharded else 0

    def _wait(self, transfers: Sequence[Transfer]) -> None:
        with self.tracer.span("receive"):
            for transfer in transfers:
                transfer.wait()

    def _gathered(self, own_TD: Tensor) -> Tensor:
        """The tokens of all ranks of the replica."""
        if self.tp == 1:
            return own_TD
        hidden_TD = own_TD.new_empty(self.tp * len(own_TD), *own_TD.shape[1:])
        with self.tracer.span("gather"):
            dist.all_gather_into_tensor(hidden_TD, own_TD, group=self.tp_group)
        return hidden_TD
