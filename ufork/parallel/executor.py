"""Runs a stage's list of actions: the same loop for every layout.

    list of the stage -> runner: forward or backward of one micro-batch -> the next action, to the end of the list

The runner implements the passes of its stage: the trunk sends hidden states and receives gradients, a branch does the
reverse, a colocated stage does neither.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ufork.errors import PeerError, UforkError
from ufork.parallel.engine.zero import Engine
from ufork.parallel.layout import MeshCoordinate
from ufork.parallel.schedule.actions import Action, Pass
from ufork.parallel.tracing.trace import Tracer
from ufork.parallel.transport.bridge import Transfer
from ufork.parallel.transport.link import Link, ReceiveQueue, SendQueue
from ufork.parallel.transport.lost_peer import is_about_a_peer
from ufork.vocabulary import PackedSequence, Task

Sequences = Mapping[Task, Sequence[PackedSequence]]
"""This replica's packed sequences by task, in the order of their micro-batches."""


class Runner(Protocol):
    """Runs the passes of one stage.

    Attributes:
        sums: summed cross-entropy of each micro-batch whose loss this stage computed.
    """

    sums: dict[Action, Tensor]

    def forward(self, action: Action) -> None:
        """Runs the forward pass."""
        ...

    def backward(self, action: Action) -> None:
        """Runs the backward pass."""
        ...

    def finish(self) -> None:
        """Waits for the sends that are under way."""
        ...


def run_actions(
    actions: Sequence[Action],
    runner: Runner,
    tracer: Tracer,
    *,
    who: MeshCoordinate,
    mark: Callable[[str], None] = lambda doing: None,
) -> None:
    """Runs `actions` in order, and calls `mark` with the name of each when it has been launched.

    Raises:
        PeerError: a transfer or a collective failed; the message names the rank `who` and the pass it was running.
    """
    steps = {Pass.FORWARD: runner.forward, Pass.BACKWARD: runner.backward}
    for action in actions:
        name = f"{action.task} {action.index}"
        doing = f"{action.direction} of {action.micro_batch}"
        with _failures_named(f"{who}: {doing}"), tracer.span(str(action.direction), name):
            steps[action.direction](action)
        mark(doing)


class TrunkRunner:
    """Sends hidden states and receives their gradients; a frozen trunk keeps no graph and only sends.

    A gradient's receive is posted as soon as all is sent that the gradient needs, so that the branch's send of it ends
    even while this rank's host waits for its device.
    """

    def __init__(self, engine: Engine, link: Link, sequences: Sequences, *, in_flight: int):
        self.engine, self.link, self.sequences, self.in_flight = engine, link, sequences, in_flight
        self.sums: dict[Action, Tensor] = {}
        self._flying: dict[tuple[Task, int], tuple[Tensor, list[Transfer]]] = {}
        self._unposted: dict[Task, deque[Action]] = defaultdict(deque)
        self._gradients: dict[tuple[Task, int], tuple[Tensor, list[Transfer]]] = {}
        self._sends = SendQueue()  # of a frozen trunk, which gets no gradient that would prove their arrival

    def forward(self, action: Action) -> None:
        """Runs the trunk and sends the hidden states."""
        sequence = self.sequences[action.task][action.index]
        hidden_TD = self.engine.forward(sequence.to(self.link.bridge.device))
        sends = self.link.send_hidden(action, hidden_TD, sequence)
        if hidden_TD.requires_grad:
            self._flying[action.task, action.index] = hidden_TD, sends
            self._post_gradients(action)
        else:
            self._sends.add(sends)
            self._sends.finish(leave=self.in_flight)

    def backward(self, action: Action) -> None:
        """Waits for the gradient and runs the trunk backward."""
        gradient_TD = self.link.wait_for_gradient(self._gradients.pop((action.task, action.index)))
        hidden_TD, sends = self._flying.pop((action.task, action.index))
        for send in sends:  # they have arrived, since the gradient has
            send.wait()
        self.engine.backward((hidden_TD * gradient_TD.to(hidden_TD.dtype)).sum(), action.task)

    def _post_gradients(self, sent: Action) -> None:
        """Posts the receives of the gradients that need nothing more than what is sent up to `sent`."""
        unposted = self._unposted[sent.task]
        unposted.append(sent)
        while unposted and self.link.last_needed(unposted[0]) <= sent.index:
            action = unposted.popleft()
            self._gradients[action.task, action.index] = self.link.post_gradient(action)

    def finish(self) -> None:
        """Waits for the sends of a frozen trunk."""
        self._sends.finish()


class BranchRunner:
    """Receives hidden states and, if the trunk trains, sends their gradients back."""

    def __init__(
        self,
        engine: Engine,
        link: Link,
        num_targets: Mapping[Task, float],
        actions: Sequence[Action],
        *,
        trunk_trains: bool,
        in_flight: int,
        dtype: torch.dtype,
    ):
        self.engine, self.link, self.num_targets = engine, link, num_targets
        self.trunk_trains, self.dtype = trunk_trains, dtype
        self.sums: dict[Action, Tensor] = {}
        self._sends, self._most_sent = SendQueue(), -(-in_flight * link.peer_dp // link.dp)
        forwards = [action for action in actions if action.direction is Pass.FORWARD]
        self._received = ReceiveQueue(forwards, link.post_hidden, ahead=link.receives_ahead)
        self._live: dict[int, tuple[Tensor, Tensor]] = {}  # by micro-batch: hidden states, and loss term

    def forward(self, action: Action) -> None:
        """Waits for the hidden states and runs the branch."""
        hidden_TD, sequence = self.link.wait_for_hidden(self._received.take(action))
        hidden_TD = hidden_TD.to(self.dtype).requires_grad_()
        loss, self.sums[action] = self.engine.forward(sequence, self.num_targets[action.task], hidden_TD)
        self._live[action.index] = hidden_TD, loss

    def backward(self, action: Action) -> None:
        """Runs the branch backward if anything needs its gradients, and sends that of the hidden states."""
        hidden_TD, loss = self._live.pop(action.index)
        if self.engine.trains or self.trunk_trains:
            self.engine.backward(loss, action.task)
        if self.trunk_trains:
            assert hidden_TD.grad is not None
            self._sends.add(self.link.send_gradient(action, hidden_TD.grad / self.engine.gradient_scale))
            self._sends.finish(leave=self._most_sent)  # the trunk keeps no more sequences than that

    def finish(self) -> None:
        """Waits until the last gradients have been received."""
        self._sends.finish()


class ColocatedRunner:
    """Runs trunk and branch in one stage."""

    def __init__(self, engine: Engine, sequences: Sequences, num_targets: Mapping[Task, float]):
        self.engine, self.sequences, self.num_targets = engine, sequences, num_targets
        self.sums: dict[Action, Tensor] = {}
        self._loss = torch.empty(0)

    def forward(self, action: Action) -> None:
        """Runs the whole model forward."""
        sequence = self.sequences[action.task][action.index].to(self.engine.device)
        self._loss, self.sums[action] = self.engine.forward(sequence, self.num_targets[action.task])

    def backward(self, action: Action) -> None:
        """Runs the whole model backward."""
        self.engine.backward(self._loss, action.task)

    def finish(self) -> None:
        """Does nothing: a colocated stage sends nothing."""


@contextmanager
def _failures_named(doing: str) -> Iterator[None]:
    """Adds to errors of lost peers what this rank was running; torch and DeepSpeed raise some as RuntimeError."""
    try:
        yield
    except UforkError as error:
        raise type(error)(f"{error} (during {doing})", **error.fields) from error
    except RuntimeError as error:  # DistError is one, too
        if not is_about_a_peer(error):
            raise
        raise PeerError(
            f"{doing}: a rank of its stage died, hung or raised, see its log ({error})", cause=str(error)
        ) from error
