"""The torch.distributed world of a stage, which is all that DeepSpeed sees, and the job around it.

    RankEnvironment -> the job's store -> device.py: one kind of device for all ranks
                                       -> one world per stage: WORLD and a grid of data- and tensor-parallel groups
                                       -> bridge.py: transfers between the stages, sums over the job

ZeRO-3 checks its parameter trace and sets barriers over WORLD, so engines of several stages cannot share
one: they hang at the first optimizer step (seen in DeepSpeed 0.19.8).

On CUDA the groups of a stage are both gloo, for what is on the host, and NCCL, for what is on the device.

This is the only module below the entry programs that writes environment variables: DeepSpeed reads RANK, LOCAL_RANK and
WORLD_SIZE, which must be the stage's.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ufork.errors import PeerError, first_line
from ufork.network_address import is_loopback
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import Layout, MeshCoordinate, place_ranks, ranks_of
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.abort_groups import abort_groups
from ufork.parallel.transport.bridge import Bridge
from ufork.parallel.transport.data_plane import DataPlane, data_plane_of, nccl_timeout
from ufork.parallel.transport.device import agree_on_device, report_device
from ufork.parallel.transport.device_progress import DeviceProgress
from ufork.parallel.transport.job_store import open_store, signed, verified
from ufork.parallel.transport.roll_call import answering_roll_calls
from ufork.parallel.transport.store_calls import STORE_SECONDS, in_time
from ufork.processes.kept_memory import keep_freed_memory

POLL_SECONDS = 0.5
"""Interval at which a rank asks the job's store whether the leader has finished; `wait` of the store would log each."""
LOOPBACK_INTERFACE = "lo"
"""Linux's name of it."""
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Backends of a stage's groups, by the kind of its devices."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One rank of a job, and the groups of its stage."""

    coordinate: MeshCoordinate
    size: int
    """Ranks of the job."""
    device: torch.device
    native_bf16: bool
    """Whether the devices of all ranks of the job compute bf16 natively."""
    timeout_seconds: float
    store: dist.Store
    secret: str = field(repr=False)
    """Of the job (`job_store`)."""
    dp_group: dist.ProcessGroup
    """The ranks with the same tp shard, one per replica."""
    tp_group: dist.ProcessGroup
    """The ranks of this replica."""
    data_plane: DataPlane | None = None
    """How tensors pass between the devices of ranks; None on CPUs."""
    device_groups: tuple[Any, ...] = ()
    """The stage's groups on the data plane, for its failures; none on CPUs."""
    bridges: list[Bridge] = field(default_factory=list)
    """Bridges that this rank has opened."""

    @property
    def rank(self) -> int:
        """This rank in the job."""
        return self.coordinate.rank

    def open_bridge(self, layout: Layout, name: str) -> Bridge:
        """Returns the bridge of the phase `name`; all ranks with work in `layout` must call, and no others.

        Raises:
            PeerError: a rank did not join in time.
        """
        bridge = Bridge(
            dist.PrefixStore(f"bridge/{name}", self.store),
            layout,
            self.coordinate,
            self.device,
            timeout_seconds=self.timeout_seconds,
            secret=f"{self.secret}/{name}",
            data_plane=self.data_plane,
            stage_groups=self.device_groups,
        )
        self.bridges.append(bridge)
        return bridge

    def wait_for_device(self, waits_for: str) -> None:
        """Waits until this rank's device has done what it was given by the stage; before the host reads `waits_for`.

        Raises:
            PeerError: it was not done within the time-out, or a rank is gone.
        """
        if self.data_plane:
            timeout = timedelta(seconds=self.timeout_seconds)
            groups = self.device_groups
            DeviceProgress(self.data_plane.record_event, lambda: groups, self.coordinate, timeout).wait(
                f"{waits_for} from its stage"
            )

    def abort(self) -> bool:
        """Ends what runs on this rank's device for other ranks, which may be lost; before leaving with an error.

        Groups on the data plane cannot be used afterwards; on CPUs there are none. Returns whether they ended in time.
        """
        groups = [*self.device_groups, *(group for bridge in self.bridges for group in bridge.device_groups)]
        self.bridges.clear()
        return abort_groups(groups)

    def from_rank_0(self, name: str, value: Any) -> Any:
        """Returns the `value` of rank 0, of JSON's types, on all ranks, which must all call with the same `name`.

        Raises:
            PeerError: rank 0 is gone, or did not call in time.
        """
        key = f"from rank 0/{name}"
        if self.rank == 0:
            self.store.set(key, signed(value, key, self.secret))
        try:
            content = in_time(lambda: self.store.get(key), self.timeout_seconds + STORE_SECONDS)
        except dist.DistError as error:
            raise PeerError(f"{self.coordinate} waited for rank 0 ({error})", cause=str(error)) from error
        return verified(content, key, self.secret)

    def report_finished(self, name: str) -> None:
        """Releases the ranks in `wait_until_finished`."""
        self.store.set(f"finished/{name}", "")

    def wait_until_finished(self, name: str) -> None:
        """Waits without time limit until the leader reports `name` as finished.

        Raises:
            PeerError: the leader is gone.
        """
        try:
            while not in_time(lambda: self.store.check([f"finished/{name}"]), self.timeout_seconds):
                time.sleep(POLL_SECONDS)
        except dist.DistNetworkError as error:
            raise PeerError(
                f"{self.coordinate} waited for {name} to finish, but rank 0 is gone ({error})", cause=str(error)
            ) from error


@contextmanager
def join_world(
    rank_env: RankEnvironment, layout: LayoutConfig | None = None, *, timeout_seconds: float
) -> Iterator[World]:
    """Joins the other ranks of the job (with NCCL and gloo on CUDA devices, gloo on CPUs) and leaves them at the end.

    After an error it leaves alone, and waits at most `roll_call.ANSWER_SECONDS`, for the name of the rank that is lost.

    Args:
        rank_env: this rank, and where the ranks rendezvous.
        layout: layout of the job's ranks; colocated by default.
        timeout_seconds: how long ranks wait for each other, here and in every later transfer and collective.

    Raises:
        ConfigError: the layout does not fit the number of ranks, or the ranks the devices.
        MachineError: torch cannot use the NVIDIA devices of a machine.
        PeerError: a rank did not join within `timeout_seconds`, or was lost later; names the rank.
    """
    coordinates = place_ranks(layout or LayoutConfig(), rank_env.world_size)
    timeout = timedelta(seconds=timeout_seconds)
    _export(rank_env, rank=rank_env.rank, size=rank_env.world_size)
    with _peers_named(rank_env, f"rendezvous with the other ranks at {_where(rank_env)}"):
        store = open_store(rank_env, timeout)
    with answering_roll_calls(store, coordinates, rank_env.rank) as roll_call:
        world = _join_stage(store, rank_env, coordinates, timeout)
        try:
            with _peers_named(rank_env, f"connecting the GPUs of the {world.coordinate.stage} stage"):
                _connect_stage(world, dist.group.WORLD, world.dp_group, world.tp_group)
            yield world
            for bridge in world.bridges:
                bridge.close()
            roll_call.end()
            _leave_together(store, rank_env, timeout)
        except BaseException as error:
            roll_call.report(error)  # before other ranks notice that this one leaves
            _leave_alone(world)
            raise
        dist.destroy_process_group()


def _join_stage(
    store: dist.Store, rank_env: RankEnvironment, coordinates: tuple[MeshCoordinate, ...], timeout: timedelta
) -> World:
    """Agrees on the devices and makes the groups of this rank's stage."""
    coordinate = coordinates[rank_env.rank]
    device, native_bf16 = _take_device(store, rank_env, timeout)
    if device.type == "cpu":
        keep_freed_memory()
    members = ranks_of(coordinates, coordinate.stage)
    _export(rank_env, rank=members.index(rank_env.rank), size=len(members))
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)  # of which DeepSpeed makes its device
    with _peers_named(rank_env, f"rendezvous of the {coordinate.stage} stage at {_where(rank_env)}"):
        dist.init_process_group(
            BACKENDS[device.type],
            store=dist.PrefixStore(f"stage/{coordinate.stage}", store),
            rank=members.index(rank_env.rank),
            world_size=len(members),
            timeout=timeout,
        )
        dp_group, tp_group = _mesh_groups(coordinate, timeout)
    return World(
        coordinate=coordinate,
        size=rank_env.world_size,
        device=device,
        native_bf16=native_bf16,
        timeout_seconds=timeout.total_seconds(),
        store=store,
        secret=rank_env.secret,
        dp_group=dp_group,
        tp_group=tp_group,
        data_plane=data_plane_of(device),
        device_groups=_nccl_groups(device, timeout, dist.group.WORLD, dp_group, tp_group),
    )


def _take_device(store: dist.Store, rank_env: RankEnvironment, timeout: timedelta) -> tuple[torch.device, bool]:
    """Returns this rank's device, of the kind that all ranks have, and whether all of them compute bf16 natively."""
    with _peers_named(rank_env, "agreement on the ranks' devices"):
        report = report_device(rank_env, os.environ)
        decision = agree_on_device(store, report, rank_env.world_size, timeout, rank_env.secret)
    os.environ["DS_ACCELERATOR"] = report.kind
    return torch.device("cuda", report.index) if report.kind == "cuda" else torch.device("cpu"), decision.native_bf16


def _mesh_groups(coordinate: MeshCoordinate, timeout: timedelta) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Returns this rank's data- and tensor-parallel group; those of torch's device mesh time out after half an hour."""
    dp, tp = coordinate.shape.dp, coordinate.shape.tp
    replicas = [list(range(dp_rank * tp, (dp_rank + 1) * tp)) for dp_rank in range(dp)]
    groups = []
    for every_group in (zip(*replicas, strict=True), replicas):
        own = [_group_of(list(members), timeout) for members in every_group]
        groups += [group for group in own if isinstance(group, dist.ProcessGroup)]
    dp_group, tp_group = groups
    return dp_group, tp_group


def _group_of(members: list[int], timeout: timedelta) -> Any:
    """Returns a group of ranks of the stage, which all its ranks must call; no group on ranks that are not members."""
    whole = len(members) == dist.get_world_size()
    return dist.group.WORLD if whole else dist.new_group(members, timeout=timeout)


def _nccl_groups(device: torch.device, timeout: timedelta, *groups: Any) -> tuple[Any, ...]:
    """Returns the NCCL groups within `groups`, each once, with their watchdogs later than the host's `timeout`."""
    if device.type != "cuda":
        return ()
    backends = tuple({id(backend): backend for backend in (group._get_backend(device) for group in groups)}.values())
    for backend in backends:
        backend._set_default_timeout(nccl_timeout(timeout))
    return backends


def _connect_stage(world: World, *groups: Any) -> None:
    """Makes NCCL connect the ranks of the stage, which it does at a group's first collective.

    Raises:
        PeerError: a rank did not answer.
    """
    if world.device_groups:
        for group in {id(group): group for group in groups if group.size() > 1}.values():
            dist.all_reduce(torch.zeros(1, device=world.device), group=group)
        world.wait_for_device("the first sum")


def _leave_alone(world: World) -> None:
    """Leaves without the other ranks, one of which may be lost: NCCL's destruction would wait for it."""
    on_device, in_time = bool(world.device_groups), world.abort()
    if not on_device:
        dist.destroy_process_group()
    elif in_time:
        with contextlib.suppress(dist.DistError, RuntimeError):
            dist.distributed_c10d._abort_process_group()


def _leave_together(store: dist.Store, rank_env: RankEnvironment, timeout: timedelta) -> None:
    """Rank 0 serves the store, so it leaves last; for ranks that failed it waits until the timeout."""
    store.set(f"left/{rank_env.rank}", "")
    if rank_env.rank == 0:
        with contextlib.suppress(dist.DistError):
            store.wait([f"left/{rank}" for rank in range(rank_env.world_size)], timeout)


def _where(rank_env: RankEnvironment) -> str:
    return f"{rank_env.master_address}:{rank_env.master_port}"


def _export(rank_env: RankEnvironment, *, rank: int, size: int) -> None:
    """Sets what DeepSpeed and gloo read."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank_env.local_rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR=rank_env.master_address,
        MASTER_PORT=str(rank_env.master_port),
    )
    if is_loopback(rank_env.master_address):  # all ranks are on this machine; gloo would listen at the host's address
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK_INTERFACE)


@contextmanager
def _peers_named(rank_env: RankEnvironment, action: str) -> Iterator[None]:
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        raise PeerError(
            f"rank {rank_env.rank} of {rank_env.world_size}: {action} failed; a rank died, hung or raised, see its log"
            f" ({first_line(error)})"
        ) from error
