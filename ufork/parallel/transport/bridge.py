"""Communication between stages: point-to-point transfers, and sums over the whole job.

    the job's store + Layout + this rank's MeshCoordinate -> Bridge -> Transfer, sum, gather

Each stage is a separate torch.distributed world, so the job needs one more group, the bridge, which DeepSpeed does not
know. On CPUs it is gloo. On CUDA it is NCCL with one communicator and stream per direction, so that a waiting receive
in one never blocks a send in the other.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ufork.errors import PeerError
from ufork.parallel.layout import Layout, MeshCoordinate


class Channel(IntEnum):
    """Kinds of messages; those of one channel from one rank to another keep their order."""

    SEQUENCES = 0
    HIDDEN = 1
    GRADIENTS = 2
    WEIGHTS = 3


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A send or receive under way."""

    work: Any
    tensor: Tensor
    """Tensor that is sent or filled, kept alive until the transfer is done."""
    who: MeshCoordinate
    """The rank that waits."""
    waits_for: str
    """The tensor and the rank that it waits for, for the error message."""
    timeout: timedelta | None
    """Limit of the wait; None on CUDA, where only the stream waits, and NCCL's watchdog enforces the time-out."""

    def wait(self) -> None:
        """Waits until the tensor is sent or filled.

        Raises:
            PeerError: the transfer timed out, or the other rank is gone.
        """
        try:
            self.work.wait(self.timeout) if self.timeout else self.work.wait()
        except (dist.DistError, RuntimeError) as error:
            raise _lost(self.who, self.waits_for, error) from error


class Bridge:
    """One rank's end of the group of all ranks with work.

    Attributes:
        coordinate: this rank's.
        layout: of the phase.
        device: of this rank.
    """

    def __init__(
        self,
        store: dist.Store,
        layout: Layout,
        coordinate: MeshCoordinate,
        device: torch.device,
        *,
        timeout_seconds: float,
    ):
        self.coordinate, self.layout, self.device = coordinate, layout, device
        self.timeout = timedelta(seconds=timeout_seconds)
        self._store = store
        self._members = layout.present_ranks
        self._num_gathers = 0
        self._group = self.connect("sums", self._members)
        upwards = self.connect("up", self._members) if device.type == "cuda" else self._group
        downwards = self.connect("down", self._members) if device.type == "cuda" else self._group
        self._groups = {channel: upwards for channel in Channel} | {Channel.GRADIENTS: downwards}

    @property
    def size(self) -> int:
        """Number of ranks with work in this layout."""
        return len(self._members)

    @property
    def is_leader(self) -> bool:
        """Whether this rank logs and writes for the job."""
        return self.coordinate.rank == self.leader

    @property
    def leader(self) -> int:
        """Rank of the leader in the job."""
        return self._members[0]

    def send(self, tensor: Tensor, to: int, channel: Channel, what: str) -> Transfer:
        """Starts to send `tensor`, which must not change until the transfer has been waited for."""
        work = self._started(
            f"sending {what} to {self.layout.coordinates[to]}",
            lambda: self._groups[channel].send([tensor], self._members.index(to), channel),
        )
        return self._transfer(work, tensor, f"{self.layout.coordinates[to]} to take {what}")

    def receive(self, buffer: Tensor, sender: int, channel: Channel, what: str) -> Transfer:
        """Starts to receive into `buffer`, which is filled once the transfer has been waited for."""
        waits_for = f"{what} from {self.layout.coordinates[sender]}"
        work = self._started(
            f"receiving {waits_for}",
            lambda: self._groups[channel].recv([buffer], self._members.index(sender), channel),
        )
        return self._transfer(work, buffer, waits_for)

    def sum(self, *values: float, waits_for: str = "the step's figures") -> list[float]:
        """Returns the sums of `values` over the job, in fp64; `waits_for` names them in errors.

        Raises:
            PeerError: a rank timed out or is gone.
        """
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        self.add_up(sums, waits_for=waits_for)
        return sums.tolist()

    def add_up(self, tensor: Tensor, *, waits_for: str, group: Any = None) -> None:
        """Replaces `tensor` by its sum over `group` (from `connect`; default: the job); raises as `sum`."""
        group = group or self._group
        if group.size() > 1:
            work = self._started(f"adding up {waits_for}", lambda: group.allreduce([tensor]))
            self._transfer(work, tensor, f"{waits_for} of all ranks").wait()

    def gather(self, value: Any) -> list[Any]:
        """Returns the `value` of every rank, the leader's first; for small JSON values, and seldom.

        Raises:
            PeerError: a rank timed out or is gone.
        """
        self._num_gathers += 1
        keys = [f"gather/{self._num_gathers}/{member}" for member in self._members]
        self._store.set(f"gather/{self._num_gathers}/{self.coordinate.rank}", json.dumps(value))
        try:
            self._store.wait(keys, self.timeout)
            return [json.loads(self._store.get(key)) for key in keys]
        except dist.DistError as error:
            raise _lost(self.coordinate, "the reports of all ranks", error) from error

    def connect(self, name: str, members: tuple[int, ...]) -> Any:
        """Returns a group of the ranks `members` of the job, all of which must call."""
        store, rank = dist.PrefixStore(name, self._store), members.index(self.coordinate.rank)
        if self.device.type != "cuda":
            return dist.ProcessGroupGloo(store, rank, len(members), self.timeout)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = self.timeout
        return dist.ProcessGroupNCCL(store, rank, len(members), options)

    def _started(self, action: str, start: Callable[[], Any]) -> Any:
        try:
            return start()
        except (dist.DistError, RuntimeError) as error:
            raise _lost(self.coordinate, action, error) from error

    def _transfer(self, work: Any, tensor: Tensor, waits_for: str) -> Transfer:
        timeout = None if self.device.type == "cuda" else self.timeout
        return Transfer(work=work, tensor=tensor, who=self.coordinate, waits_for=waits_for, timeout=timeout)


def _lost(who: MeshCoordinate, waited_for: str, error: Exception) -> PeerError:
    return PeerError(
        f"{who} waited for {waited_for}; a rank died, hung or raised, see its log ({str(error).splitlines()[0]})",
        cause=str(error),
    )
