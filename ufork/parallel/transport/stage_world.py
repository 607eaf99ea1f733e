"""The torch.distributed world of a stage, which is the whole of what DeepSpeed sees, and the job around it.

    address -> the job's store -> one world per stage: WORLD and a grid of data- and tensor-parallel groups
                               -> bridge.py: transfers between the stages, sums over the job

DeepSpeed's ZeRO-3 checks its parameter trace and places barriers over WORLD, so engines of several stages cannot share
one (they hang at the first optimizer step; seen in 0.19.8).

This is the one place below the entry programs that touches the environment: DeepSpeed reads RANK, LOCAL_RANK and
WORLD_SIZE there, and they must be the stage's.
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
from ufork.parallel.layout import Layout, Place, place_ranks, ranks_of, stage_shapes
from ufork.parallel.rank_environment import RankAddress
from ufork.parallel.transport.bridge import Bridge

POLL_SECONDS = 5.0
"""How often a rank without work looks whether the others have finished."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One rank of a job: its place, and the groups of its stage."""

    rank: int
    """Of the job."""
    size: int
    """Ranks of the job."""
    place: Place
    device: torch.device
    timeout_seconds: float
    store: dist.Store
    dp_group: dist.ProcessGroup
    """The ranks that hold the same slice of the stage's weights' products, one per replica."""
    tp_group: dist.ProcessGroup
    """The ranks of this replica."""

    @property
    def leads_stage(self) -> bool:
        """Whether this is its stage's rank 0."""
        return self.place.dp_rank == self.place.tp_rank == 0

    @property
    def leads_replica(self) -> bool:
        """Whether this rank reads data, and counts, for its replica."""
        return self.place.tp_rank == 0

    def open_bridge(self, layout: Layout, name: str) -> Bridge:
        """The job's group for one stage of a recipe, `name` telling it from the others; only ranks with work call.

        Raises:
            PeerError: a rank did not come in time.
        """
        return Bridge(
            dist.PrefixStore(f"bridge/{name}", self.store),
            layout,
            self.rank,
            self.device,
            timeout_seconds=self.timeout_seconds,
        )

    def tell_finished(self, name: str) -> None:
        """Lets the ranks that `wait_until_finished` go on."""
        self.store.set(f"finished/{name}", "")

    def wait_until_finished(self, name: str) -> None:
        """Waits, however long it takes, until the leader has finished what it calls `name`.

        Raises:
            PeerError: the leader is gone.
        """
        while True:
            try:
                self.store.wait([f"finished/{name}"], timedelta(seconds=POLL_SECONDS))
            except dist.DistNetworkError as error:
                raise PeerError(
                    f"rank {self.rank} waited for {name} to finish, but rank 0 is gone ({error})"
                ) from error
            except dist.DistError:
                continue
            return


@contextmanager
def join_world(address: RankAddress, layout: LayoutConfig | None = None, *, timeout_seconds: float) -> Iterator[World]:
    """Joins the ranks at `address` (NCCL on CUDA devices, gloo on CPUs) and leaves them at the end.

    Args:
        address: this rank's.
        layout: how the job's ranks are laid out; colocated unless given.
        timeout_seconds: how long ranks wait for each other, here and in every later transfer and collective.

    Raises:
        ConfigError: the layout does not fit the number of ranks.
        PeerError: not all ranks came within `timeout_seconds`.
    """
    layout = layout or LayoutConfig()
    places = place_ranks(layout, address.world_size)
    place = places[address.rank]
    device = _take_device(address)
    timeout = timedelta(seconds=timeout_seconds)
    _export(address, rank=address.rank, size=address.world_size)
    where = f"{address.master_address}:{address.master_port}"
    with _peers_named(address, f"meeting the other ranks at {where}"):
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
    members = ranks_of(places, place.stage)
    _export(address, rank=members.index(address.rank), size=len(members))
    with _peers_named(address, f"meeting the stage {place.stage} at {where}"):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(f"stage/{place.stage}", store),
            rank=members.index(address.rank),
            world_size=len(members),
            timeout=timeout,
        )
        shape = stage_shapes(layout, address.world_size)[place.stage]
        mesh = init_device_mesh(device.type, (shape.dp, shape.tp), mesh_dim_names=("dp", "tp"))
    try:
        yield World(
            rank=address.rank,
            size=address.world_size,
            place=place,
            device=device,
            timeout_seconds=timeout_seconds,
            store=store,
            dp_group=mesh.get_group("dp"),
            tp_group=mesh.get_group("tp"),
        )
        _leave_together(store, address, timeout)
    finally:
        dist.destroy_process_group()


def _leave_together(store: dist.Store, address: RankAddress, timeout: timedelta) -> None:
    """Rank 0 holds the store, so it leaves last; those that fail do not come here, and nobody waits for them long."""
    store.set(f"left/{address.rank}", "")
    if address.rank == 0:
        with contextlib.suppress(dist.DistError):
            store.wait([f"left/{rank}" for rank in range(address.world_size)], timeout)


def _take_device(address: RankAddress) -> torch.device:
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    device = torch.device("cuda", address.local_rank)
    torch.cuda.set_device(device)
    return device


def _export(address: RankAddress, *, rank: int, size: int) -> None:
    """What torch's rendezvous, and then DeepSpeed, read."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(address.local_rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR=address.master_address,
        MASTER_PORT=str(address.master_port),
    )


@contextmanager
def _peers_named(address: RankAddress, action: str) -> Iterator[None]:
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        raise PeerError(
            f"rank {address.rank} of {address.world_size}: {action} failed; a rank died, hung or raised, see its log"
            f" ({str(error).splitlines()[0]})"
        ) from error
