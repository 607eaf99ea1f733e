"""A data plane for ranks on CPUs that keeps NCCL's rules, so that what NCCL would hang in hangs here, too.

- The first transfer of two ranks in a group and direction blocks the host until the peer has begun it (NCCL connects).
- Transfers of one pair and group run one after the other, in the order of their launches, on a stream of their own.
- `wait()` raises nothing and has no time-out: it lets the stream of the passes wait. Here the host waits for that
  stream, at most `patience_seconds`, after which it runs ahead of the device as it always does on CUDA, with garbage.
- An event is passed when everything that the stream waited for before it is done.
- A peer that is gone is no error until a watchdog has seen it: `get_error`, if `sees_lost_peers`.

Use: `dataclasses.replace(world, data_plane=nccl_rules())`.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ufork.parallel.transport.data_plane import DataPlane


def nccl_rules(
    *, patience_seconds: float | None = None, sees_lost_peers: bool = False, made: "list[NcclRulesGroup] | None" = None
) -> DataPlane:
    """Returns the data plane of one rank; groups are added to `made`."""
    device = Device(patience_seconds)

    def connect(store: dist.Store, rank: int, size: int, timeout: timedelta, *, during_passes: bool) -> NcclRulesGroup:
        group = NcclRulesGroup(device, store, rank, size, timeout, sees_lost_peers=sees_lost_peers)
        if made is not None:
            made.append(group)
        return group

    return DataPlane(connect=connect, record_event=device.record_event)


@dataclass
class Device:
    """The stream of a rank's passes: what it has been told to wait for."""

    patience_seconds: float | None
    waited_for: "list[Work]" = field(default_factory=list)

    def record_event(self) -> Any:
        """Returns an event behind all that the stream waits for."""
        before = list(self.waited_for)
        return SimpleNamespace(query=lambda: all(work.is_completed() for work in before))


class Work:
    """A transfer on its way through the stream of its pair."""

    def __init__(self, device: Device):
        self.device, self.done = device, threading.Event()

    def wait(self) -> None:
        """Lets the stream of the passes wait."""
        self.device.waited_for.append(self)
        self.done.wait(self.device.patience_seconds)

    def is_completed(self) -> bool:
        """Whether the tensor is sent or filled."""
        return self.done.is_set()


class NcclRulesGroup:
    """What ProcessGroupNCCL offers that the bridge uses."""

    def __init__(
        self, device: Device, store: dist.Store, rank: int, size: int, timeout: timedelta, *, sees_lost_peers: bool
    ):
        self.device, self._store, self._rank, self._size, self._timeout = device, store, rank, size, timeout
        self._sees_lost_peers, self._error = sees_lost_peers, "SUCCESS"
        self._gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, timedelta(hours=1))
        self.connected: set[tuple[int, int]] = set()
        """Sender and receiver of transfers that block the host no more."""
        self._streams: dict[int, queue.SimpleQueue] = {}
        self._works: list[Work] = []
        self.ended = ""
        """How the group was left: "shut down", "aborted" or not at all."""

    def name(self) -> str:
        """Name of the backend."""
        return "nccl"

    def size(self) -> int:
        """Number of ranks."""
        return self._size

    def send(self, tensors: list[Tensor], peer: int, tag: int) -> Work:
        """Launches a send; NCCL ignores tags."""
        self._connect(self._rank, peer)
        return self._launch(peer, lambda: self._gloo.send(tensors, peer, 0))

    def recv(self, tensors: list[Tensor], peer: int, tag: int) -> Work:
        """Launches a receive."""
        self._connect(peer, self._rank)
        return self._launch(peer, lambda: self._gloo.recv(tensors, peer, 0))

    def allreduce(self, tensors: list[Tensor]) -> Work:
        """Launches a sum."""
        return self._launch(self._rank, lambda: self._gloo.allreduce(tensors))

    def wait_for_all(self) -> None:
        """Makes the host wait for all transfers; raises TimeoutError if they do not end."""
        if not all(work.done.wait(self._timeout.total_seconds()) for work in self._works):
            raise TimeoutError("transfers that do not end")

    def get_error(self) -> Any:
        """Returns what the watchdog has seen."""
        return SimpleNamespace(name=self._error)

    def shutdown(self) -> None:
        """Waits for all transfers and leaves."""
        assert not self.ended
        for work in self._works:
            work.done.wait()
        self.ended = "shut down"

    def abort(self) -> None:
        """Ends all transfers."""
        for work in self._works:
            work.done.set()
        self.ended = "aborted"

    def _connect(self, sender: int, receiver: int) -> None:
        if (sender, receiver) in self.connected:
            return
        peer = receiver if sender == self._rank else sender
        self._store.set(f"{sender} to {receiver}/{self._rank}", "")
        self._store.wait([f"{sender} to {receiver}/{peer}"], self._timeout)
        self.connected.add((sender, receiver))

    def _launch(self, stream: int, start: Callable[[], Any]) -> Work:
        assert not self.ended, "NCCL groups cannot be used once they are left"
        work = Work(self.device)
        self._works = [other for other in self._works if not other.is_completed()] + [work]
        if stream not in self._streams:
            self._streams[stream] = queue.SimpleQueue()
            threading.Thread(target=self._run, args=(self._streams[stream],), daemon=True).start()
        self._streams[stream].put((start, work))
        return work

    def _run(self, stream: queue.SimpleQueue) -> None:
        while True:
            start, work = stream.get()
            try:
                start().wait()
            except RuntimeError:
                if self._sees_lost_peers:
                    self._error = "REMOTE_ERROR"
                return  # the kernel spins for ever
            work.done.set()
