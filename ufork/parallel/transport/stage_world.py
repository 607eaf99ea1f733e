"""The torch.distributed world of a stage, which is all that DeepSpeed sees, and the job around it.

    RankEnvironment -> the job's store -> device.py: one kind of device for all ranks
                                       -> one world per stage: WORLD and a grid of data- and tensor-parallel groups
                                       -> bridge.py: transfers between the stages, sums over the job

ZeRO-3 checks its parameter trace and sets barriers over WORLD, so engines of several stages cannot share
one: they hang at the first optimizer step (seen in DeepSpeed 0.19.8).

This is the only module below the entry programs that writes environment variables: DeepSpeed reads RANK, LOCAL_RANK and
WORLD_SIZE, which must be the stage's.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ufork.errors import PeerError
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import Layout, MeshCoordinate, place_ranks, ranks_of
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.bridge import Bridge
from ufork.parallel.transport.device import agree_on_device, report_device

POLL_SECONDS = 5.0
"""Interval at which a rank without work checks whether the others have finished."""


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
    dp_group: dist.ProcessGroup
    """The ranks with the same tp shard, one per replica."""
    tp_group: dist.ProcessGroup
    """The ranks of this replica."""

    @property
    def rank(self) -> int:
        """This rank in the job."""
        return self.coordinate.rank

    def open_bridge(self, layout: Layout, name: str) -> Bridge:
        """Returns the bridge of the phase `name`; all ranks with work in `layout` must call, and no others.

        Raises:
            PeerError: a rank did not join in time.
        """
        return Bridge(
            dist.PrefixStore(f"bridge/{name}", self.store),
            layout,
            self.coordinate,
            self.device,
            timeout_seconds=self.timeout_seconds,
        )

    def report_finished(self, name: str) -> None:
        """Releases the ranks in `wait_until_finished`."""
        self.store.set(f"finished/{name}", "")

    def wait_until_finished(self, name: str) -> None:
        """Waits without time limit until the leader reports `name` as finished.

        Raises:
            PeerError: the leader is gone.
        """
        while True:
            try:
                self.store.wait([f"finished/{name}"], timedelta(seconds=POLL_SECONDS))
            except dist.DistNetworkError as error:
                raise PeerError(
                    f"{self.coordinate} waited for {name} to finish, but rank 0 is gone ({error})", cause=str(error)
                ) from error
            except dist.DistError:
                continue
            return


@contextmanager
def join_world(
    rank_env: RankEnvironment, layout: LayoutConfig | None = None, *, timeout_seconds: float
) -> Iterator[World]:
    """Joins the other ranks of the job (NCCL on CUDA devices, gloo on CPUs) and leaves them at the end.

    Args:
        rank_env: this rank, and where the ranks rendezvous.
        layout: layout of the job's ranks; colocated by default.
        timeout_seconds: how long ranks wait for each other, here and in every later transfer and collective.

    Raises:
        ConfigError: the layout does not fit the number of ranks, or the ranks the devices.
        MachineError: torch cannot use the NVIDIA devices of a machine.
        PeerError: a rank did not join within `timeout_seconds`.
    """
    layout = layout or LayoutConfig()
    coordinates = place_ranks(layout, rank_env.world_size)
    coordinate = coordinates[rank_env.rank]
    timeout = timedelta(seconds=timeout_seconds)
    _export(rank_env, rank=rank_env.rank, size=rank_env.world_size)
    where = f"{rank_env.master_address}:{rank_env.master_port}"
    with _peers_named(rank_env, f"rendezvous with the other ranks at {where}"):
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
    with _peers_named(rank_env, "agreement on the ranks' devices"):
        report = report_device(rank_env, os.environ)
        decision = agree_on_device(store, report, rank_env.world_size, timeout)
    device = torch.device("cuda", report.index) if report.kind == "cuda" else torch.device("cpu")
    os.environ["DS_ACCELERATOR"] = device.type
    members = ranks_of(coordinates, coordinate.stage)
    _export(rank_env, rank=members.index(rank_env.rank), size=len(members))
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)  # of which DeepSpeed makes its device
    with _peers_named(rank_env, f"rendezvous of the {coordinate.stage} stage at {where}"):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(f"stage/{coordinate.stage}", store),
            rank=members.index(rank_env.rank),
            world_size=len(members),
            timeout=timeout,
        )
        mesh = init_device_mesh(device.type, (coordinate.shape.dp, coordinate.shape.tp), mesh_dim_names=("dp", "tp"))
    try:
        yield World(
            coordinate=coordinate,
            size=rank_env.world_size,
            device=device,
            native_bf16=decision.native_bf16,
            timeout_seconds=timeout_seconds,
            store=store,
            dp_group=mesh.get_group("dp"),
            tp_group=mesh.get_group("tp"),
        )
        _leave_together(store, rank_env, timeout)
    finally:
        dist.destroy_process_group()


def _leave_together(store: dist.Store, rank_env: RankEnvironment, timeout: timedelta) -> None:
    """Rank 0 serves the store, so it leaves last; for ranks that failed it waits until the timeout."""
    store.set(f"left/{rank_env.rank}", "")
    if rank_env.rank == 0:
        with contextlib.suppress(dist.DistError):
            store.wait([f"left/{rank}" for rank in range(rank_env.world_size)], timeout)


def _export(rank_env: RankEnvironment, *, rank: int, size: int) -> None:
    """Sets what torch's rendezvous, and then DeepSpeed, read."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank_env.local_rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR=rank_env.master_address,
        MASTER_PORT=str(rank_env.master_port),
    )


@contextmanager
def _peers_named(rank_env: RankEnvironment, action: str) -> Iterator[None]:
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        raise PeerError(
            f"rank {rank_env.rank} of {rank_env.world_size}: {action} failed; a rank died, hung or raised, see its log"
            f" ({str(error).splitlines()[0]})"
        ) from error
