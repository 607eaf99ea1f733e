"""What passes between a trunk replica and the branch replicas beside it, cut so that no rank carries all of it.

    trunk replica, ranks 0..t-1                           branch replica, ranks 0..b-1
    hidden TD  -- n = max(t, b) slices of T/n tokens -->  slices joined, then gathered over the b ranks
    gradient   <-- the same slices, the other way round --

Slice s lies on trunk rank s div (n/t) and on branch rank s div (n/b). The row itself (boundaries, labels, codes: small)
comes from the trunk replica's rank 0. Receives are posted some micro-batches ahead, in the order of the schedule.

Shapes: T tokens, D width.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ufork.parallel.layout import BRANCHES, MeshCoordinate, Stage
from ufork.parallel.layout_checks import require_divisible_seq_len
from ufork.parallel.schedule.actions import Action
from ufork.parallel.tracing.trace import Tracer
from ufork.parallel.transport.bridge import Bridge, Channel, Transfer
from ufork.parallel.transport.packed_sequence_format import PackedSequenceFormat
from ufork.vocabulary import PackedSequence

RECEIVES_AHEAD = 2
"""Micro-batches whose receives are posted before they are needed."""


@dataclass(frozen=True, kw_only=True)
class TransferFormat:
    """The form of what is sent."""

    sequences: PackedSequenceFormat
    hidden_size: int
    dtype: torch.dtype
    trunk_is_sliced: bool = False
    """Under sequence parallelism a trunk rank holds only its own T/t tokens of the hidden states."""


def slices_of(coordinate: MeshCoordinate, *, own_tp: int, other_tp: int) -> range:
    """The slices, of max(own_tp, other_tp), that lie on `place` of a replica."""
    per_rank = max(own_tp, other_tp) // own_tp
    return range(coordinate.tp_rank * per_rank, (coordinate.tp_rank + 1) * per_rank)


Received = TypeVar("Received")


class ReceiveQueue(Generic[Received]):
    """Receives in a known order, a few of them always posted ahead."""

    def __init__(self, actions: Sequence[Action], post: Callable[[Action], Received]):
        self._waiting, self._post = deque(actions), post
        self._posted: deque[tuple[Action, Received]] = deque()
        self._have_posted(RECEIVES_AHEAD)

    def take(self, action: Action) -> Received:
        """What was posted for `action`, which is the next in order."""
        self._have_posted(1)
        expected, posted = self._posted.popleft()
        assert action == expected, f"{action} is run, but {expected} is the next to be received"
        self._have_posted(RECEIVES_AHEAD)
        return posted

    def _have_posted(self, number: int) -> None:
        while self._waiting and len(self._posted) < number:
            action = self._waiting.popleft()
            self._posted.append((action, self._post(action)))


class SendQueue:
    """Sends under way, the oldest first; what is sent stays in memory until it was waited for."""

    def __init__(self) -> None:
        self._sends: deque[list[Transfer]] = deque()

    def add(self, transfers: list[Transfer]) -> None:
        """Takes the transfers of one micro-batch."""
        self._sends.append(transfers)

    def finish(self, *, leave: int = 0) -> None:
        """Waits until at most `leave` micro-batches are under way.

        Raises:
            PeerError: a receiver is gone or does not take what is sent in time.
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

    @property
    def peer_dp(self) -> int:
        """Replicas of the trunk, at the other end of a branch's link."""
        return self.layout.shapes[Stage.TRUNK].dp

    def send_hidden(self, action: Action, hidden_TD: Tensor, sequence: PackedSequence) -> list[Transfer]:
        """Starts to send a micro-batch to its branch: this rank's slices, and from the replica's rank 0 the row."""
        stage, replica = self._peer(action)
        sends = []
        if self.coordinate.tp_rank == 0:
            encoded = self.transfer_format.sequences.encode(sequence).to(self.bridge.device)
            for tp_rank in range(self.layout.shapes[stage].tp):
                peer = self.layout.rank_at(stage, dp_rank=replica, tp_rank=tp_rank)
                sends.append(self.bridge.send(encoded, peer, Channel.SEQUENCES, f"the row of {action.micro_batch}"))
        what = f"hidden states of {action.micro_batch}"
        return sends + self._send_slices(hidden_TD.detach(), stage, replica, Channel.HIDDEN, what)

    def post_hidden(self, action: Action) -> tuple[Tensor, Tensor, list[Transfer]]:
        """Buffers for a row and for this rank's part of its hidden states, and the transfers that fill them."""
        stage, replica = self._peer(action)
        encoded = self.transfer_format.sequences.empty(self.bridge.device)
        sender = self.layout.rank_at(stage, dp_rank=replica, tp_rank=0)
        sequence = self.bridge.receive(encoded, sender, Channel.SEQUENCES, f"the row of {action.micro_batch}")
        part, transfers = self._post_slices(stage, replica, Channel.HIDDEN, f"hidden states of {action.micro_batch}")
        return encoded, part, [sequence, *transfers]

    def wait_for_hidden(self, posted: tuple[Tensor, Tensor, list[Transfer]]) -> tuple[Tensor, PackedSequence]:
        """The whole hidden states TD, and the row."""
        encoded, part, transfers = posted
        self._wait(transfers)
        return self._whole(part), self.transfer_format.sequences.decode(encoded)

    def send_gradient(self, action: Action, gradient_TD: Tensor) -> list[Transfer]:
        """Starts to send this rank's slices of the gradient of a micro-batch's hidden states back to the trunk."""
        stage, replica = self._peer(action)
        return self._send_slices(
            gradient_TD, stage, replica, Channel.GRADIENTS, f"the gradient of {action.micro_batch}"
        )

    def post_gradient(self, action: Action) -> tuple[Tensor, list[Transfer]]:
        """A buffer for this rank's part of a gradient, and the transfers that fill it."""
        stage, replica = self._peer(action)
        return self._post_slices(stage, replica, Channel.GRADIENTS, f"the gradient of {action.micro_batch}")

    def wait_for_gradient(self, posted: tuple[Tensor, list[Transfer]]) -> Tensor:
        """The gradient TD; under sequence parallelism only this rank's tokens of it."""
        part, transfers = posted
        self._wait(transfers)
        return part if self.transfer_format.trunk_is_sliced else self._whole(part)

    def _peer(self, action: Action) -> tuple[Stage, int]:
        """Stage and replica at the other end: that of the row that this replica knows as `action.index`."""
        sequence = self.layout.sequence_number(self.coordinate, action.index)
        stage = BRANCHES[action.task] if self.coordinate.stage is Stage.TRUNK else Stage.TRUNK
        return stage, sequence % self.layout.shapes[stage].dp

    def _send_slices(
        self, values_TD: Tensor, stage: Stage, replica: int, channel: Channel, what: str
    ) -> list[Transfer]:
        values_TD = values_TD.to(self.transfer_format.dtype)
        tokens, first = self._slice_tokens(stage), self._first_held_token()
        starts = [(number * tokens - first, peer) for number, peer in self._slices(stage, replica)]
        return [
            self.bridge.send(values_TD[start : start + tokens].contiguous(), peer, channel, what)
            for start, peer in starts
        ]

    def _post_slices(self, stage: Stage, replica: int, channel: Channel, what: str) -> tuple[Tensor, list[Transfer]]:
        slices, tokens = self._slices(stage, replica), self._slice_tokens(stage)
        shape = (len(slices) * tokens, self.transfer_format.hidden_size)
        part = torch.empty(shape, dtype=self.transfer_format.dtype, device=self.bridge.device)
        buffers = part.split(tokens)
        return part, [
            self.bridge.receive(buffer, peer, channel, what) for buffer, (_, peer) in zip(buffers, slices, strict=True)
        ]

    def _slices(self, stage: Stage, replica: int) -> list[tuple[int, int]]:
        """Number of each slice that lies here, and the rank where it lies at the other end."""
        other_tp = self.layout.shapes[stage].tp
        per_other = max(self.tp, other_tp) // other_tp
        return [
            (number, self.layout.rank_at(stage, dp_rank=replica, tp_rank=number // per_other))
            for number in slices_of(self.coordinate, own_tp=self.tp, other_tp=other_tp)
        ]

    def _slice_tokens(self, stage: Stage) -> int:
        return self.transfer_format.sequences.seq_len // max(self.tp, self.layout.shapes[stage].tp)

    def _first_held_token(self) -> int:
        sliced = self.coordinate.stage is Stage.TRUNK and self.transfer_format.trunk_is_sliced
        return self.coordinate.tp_rank * self.transfer_format.sequences.seq_len // self.tp if sliced else 0

    def _wait(self, transfers: Sequence[Transfer]) -> None:
        with self.tracer.span("receive"):
            for transfer in transfers:
                transfer.wait()

    def _whole(self, part: Tensor) -> Tensor:
        """The parts of all ranks of the replica end to end."""
        if self.tp == 1:
            return part
        whole = part.new_empty(self.tp * len(part), *part.shape[1:])
        with self.tracer.span("gather"):
            dist.all_gather_into_tensor(whole, part, group=self.tp_group)
        return whole
