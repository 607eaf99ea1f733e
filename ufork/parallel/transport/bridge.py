"""Communication between stages: point-to-point transfers, and sums over the whole job.

    the job's store + Layout + this rank's MeshCoordinate -> Bridge -> Transfer, sum, gather

Each stage is a separate torch.distributed world, so the job needs one more group, the bridge, which DeepSpeed does not
know. Its host group (gloo, on every device) carries what the host must read anyway: packed sequences, counts, losses.
The host waits for it with a time-out and learns at once if a peer is gone. Hidden states, gradients and weights use it
too on CPUs; on CUDA they have a data plane, with one NCCL group per direction, so that a waiting receive in one never
blocks a send in the other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ufork.parallel.layout import Layout, MeshCoordinate
from ufork.parallel.transport.data_plane import DataPlane
from ufork.parallel.transport.device_progress import DeviceProgress
from ufork.parallel.transport.job_store import signed, verified
from ufork.parallel.transport.lost_peer import lost_peer
from ufork.parallel.transport.store_calls import STORE_SECONDS, in_time

Pair = tuple[int, int]
"""Two ranks of a job that send tensors to each other, the lower one first."""


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
    """Limit of the wait; None with a data plane, where only the stream waits (`device_progress.py` times that)."""

    def wait(self) -> None:
        """Waits until the tensor is sent or filled.

        Raises:
            PeerError: the transfer timed out, or the other rank is gone.
        """
        try:
            self.work.wait(self.timeout) if self.timeout else self.work.wait()
        except RuntimeError as error:  # of gloo, too
            if self.timeout is None and not isinstance(error, dist.DistError):
                raise  # the device has failed, in whatever it was running
            raise lost_peer(self.who, self.waits_for, str(error)) from error


class Bridge:
    """One rank's end of the group of all ranks with work.

    Attributes:
        coordinate: this rank's.
        layout: of the phase.
        device: of this rank.
        device_groups: groups of the data plane that this rank has joined.
    """

    def __init__(
        self,
        store: dist.Store,
        layout: Layout,
        coordinate: MeshCoordinate,
        device: torch.device,
        *,
        timeout_seconds: float,
        secret: str = "",
        data_plane: DataPlane | None = None,
        stage_groups: Sequence[Any] = (),
    ):
        """Joins the other ranks with work in `layout`.

        Args:
            store: of this bridge alone.
            layout: of the phase.
            coordinate: this rank's.
            device: this rank's.
            timeout_seconds: how long ranks wait for each other.
            secret: with which ranks sign what they tell each other through the store; of this bridge alone.
            data_plane: how tensors pass between devices; None: through the host group, as on CPUs.
            stage_groups: other groups of the data plane that work on this device, whose errors end a wait for it.
        """
        self.coordinate, self.layout, self.device = coordinate, layout, device
        self.timeout = timedelta(seconds=timeout_seconds)
        self._store, self._secret = store, secret
        self._members = layout.present_ranks
        self._num_gathers = 0
        self._data_plane = data_plane
        self._connected: set[Pair] = set()
        self.device_groups: list[Any] = []
        self._progress = (
            DeviceProgress(
                data_plane.record_event, lambda: (*self.device_groups, *stage_groups), coordinate, self.timeout
            )
            if data_plane
            else None
        )
        place = self._members.index(coordinate.rank)
        self._host = dist.ProcessGroupGloo(dist.PrefixStore("host", store), place, self.size, self.timeout)
        upwards = self._connect("up", self._members, during_passes=True) if data_plane else self._host
        downwards = self._connect("down", self._members, during_passes=True) if data_plane else self._host
        self._groups = {
            Channel.SEQUENCES: self._host,
            Channel.HIDDEN: upwards,
            Channel.GRADIENTS: downwards,
            Channel.WEIGHTS: upwards,
        }

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

    @property
    def has_data_plane(self) -> bool:
        """Whether transfers of hidden states, gradients and weights run on the device."""
        return self._data_plane is not None

    def send(self, tensor: Tensor, to: int, channel: Channel, what: str) -> Transfer:
        """Starts to send `tensor`, which must not change until the transfer has been waited for."""
        work = self._started(
            f"sending {what} to {self.layout.coordinates[to]}",
            lambda: self._groups[channel].send([tensor], self._members.index(to), channel),
        )
        return self._transfer(work, tensor, f"{self.layout.coordinates[to]} to take {what}", self._groups[channel])

    def receive(self, buffer: Tensor, sender: int, channel: Channel, what: str) -> Transfer:
        """Starts to receive into `buffer`, which is filled once the transfer has been waited for."""
        waits_for = f"{what} from {self.layout.coordinates[sender]}"
        work = self._started(
            f"receiving {waits_for}",
            lambda: self._groups[channel].recv([buffer], self._members.index(sender), channel),
        )
        return self._transfer(work, buffer, waits_for, self._groups[channel])

    def sum(self, *values: float, waits_for: str = "the step's figures") -> list[float]:
        """Returns the sums of `values` over the job, in fp64; `waits_for` names them in errors.

        Raises:
            PeerError: a rank timed out or is gone.
        """
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        self.add_up(sums, waits_for=waits_for, group=self._host)
        return sums.tolist()

    def add_up(self, tensor: Tensor, *, waits_for: str, group: Any) -> None:
        """Replaces `tensor`, on this rank's device, by its sum over `group` (from `connect`); raises as `sum`."""
        if group.size() > 1:
            work = self._started(f"adding up {waits_for}", lambda: group.allreduce([tensor]))
            self._transfer(work, tensor, f"{waits_for} of all ranks", group).wait()

    def gather(self, value: Any) -> list[Any]:
        """Returns the `value` of every rank, the leader's first; for small JSON values, and seldom.

        Raises:
            PeerError: a rank timed out or is gone, or another program wrote to the store.
        """
        self._num_gathers += 1
        keys = [f"gather/{self._num_gathers}/{member}" for member in self._members]
        own = f"gather/{self._num_gathers}/{self.coordinate.rank}"
        self._store.set(own, signed(value, own, self._secret))
        try:
            contents = in_time(lambda: self._await(keys), self.timeout.total_seconds() + STORE_SECONDS)
        except dist.DistError as error:
            raise lost_peer(self.coordinate, "the reports of all ranks", str(error)) from error
        return [verified(content, key, self._secret) for key, content in zip(keys, contents, strict=True)]

    def connect(self, name: str, members: tuple[int, ...]) -> Any:
        """Returns a group of the ranks `members` of the job, all of which must call; for collectives after passes."""
        return self._connect(name, members, during_passes=False)

    def connect_pairs(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Connects ranks that are going to send to each other; those of each pair must call, with the same pairs.

        NCCL connects two ranks at their first transfer in a group and direction, and blocks the host until both have
        begun it. Inside a schedule a trunk rank would stand still until a branch has run the backward pass of what it
        was sent. Here all ranks go through the pairs in one order.

        Raises:
            PeerError: a rank did not call in time.
        """
        if not self.has_data_plane:
            return
        new = {(min(pair), max(pair)) for pair in pairs} - self._connected
        self._connected |= new
        for lower, higher in sorted(pair for pair in new if self.coordinate.rank in pair):
            peer = higher if self.coordinate.rank == lower else lower
            for channel in (Channel.HIDDEN, Channel.GRADIENTS):
                for sender in (lower, higher):
                    transfer = self.send if sender == self.coordinate.rank else self.receive
                    transfer(torch.zeros(1, device=self.device), peer, channel, "the first tensor").wait()
        self.wait_for_device("the first tensors of other stages")

    def mark(self, doing: str) -> None:
        """Marks on the device the end of what has been launched; `doing` names it in errors of `wait_for_device`.

        Raises:
            PeerError: a group of the device has found that a rank is gone.
        """
        if self._progress:
            self._progress.mark(doing)

    def wait_for_device(self, waits_for: str) -> None:
        """Waits until this rank's device has done what it was given; before the host reads from it.

        Raises:
            PeerError: nothing finished within the time-out, or a rank is gone; names the unfinished transfer, and the
                mark that it precedes.
        """
        if self._progress:
            self._progress.wait(waits_for)

    def close(self) -> None:
        """Releases the groups of the data plane, which would abort transfers if dropped; all ranks with work must call.

        Raises:
            PeerError: another rank is gone.
        """
        if not self.device_groups:
            return
        self.wait_for_device("the last transfers")
        self.add_up(torch.zeros(1), waits_for="the end of the phase", group=self._host)
        while self.device_groups:
            self.device_groups.pop().shutdown()

    def _await(self, keys: list[str]) -> list[bytes]:
        self._store.wait(keys, self.timeout)
        return self._store.multi_get(keys)

    def _connect(self, name: str, members: tuple[int, ...], *, during_passes: bool) -> Any:
        store, place = dist.PrefixStore(name, self._store), members.index(self.coordinate.rank)
        if self._data_plane is None:
            return dist.ProcessGroupGloo(store, place, len(members), self.timeout)
        group = self._data_plane.connect(store, place, len(members), self.timeout, during_passes=during_passes)
        self.device_groups.append(group)
        return group

    def _started(self, action: str, start: Callable[[], Any]) -> Any:
        try:
            return start()
        except (torch.AcceleratorError, torch.OutOfMemoryError):
            raise  # of this rank's device, in whatever it was running
        except (dist.DistError, RuntimeError) as error:
            raise lost_peer(self.coordinate, action, str(error)) from error

    def _transfer(self, work: Any, tensor: Tensor, waits_for: str, group: Any) -> Transfer:
        timeout: timedelta | None = self.timeout
        if self._progress and group is not self._host:
            self._progress.add(work, waits_for)
            timeout = None
        return Transfer(work=work, tensor=tensor, who=self.coordinate, waits_for=waits_for, timeout=timeout)
