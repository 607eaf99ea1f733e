"""The torch.distributed world of a stage, which is the whole of what DeepSpeed sees.

This is the one place below the entry programs that touches the environment: DeepSpeed reads RANK, LOCAL_RANK and
WORLD_SIZE there, and they must be the stage's.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ufork.errors import PeerError
from ufork.parallel.address import RankAddress

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a stage, as one of them sees them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_leader(self) -> bool:
        """Whether this rank speaks, and writes, for the stage."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sums of `values` over the ranks, in fp64.

        Raises:
            PeerError: a rank did not answer in time or is gone.
        """
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            with peers_named(self, "summing the step's figures"):
                dist.all_reduce(sums)
        return sums.tolist()

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in the order of ranks; pickled, so for small things and rarely.

        Raises:
            PeerError: as `sum`.
        """
        gathered = [value] * self.size
        if self.size > 1:
            with peers_named(self, "gathering what to report"):
                dist.all_gather_object(gathered, value)
        return gathered


@contextmanager
def peers_named(world: World, action: str) -> Iterator[None]:
    """Turns a failed collective into a `PeerError` that says who waited for what."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        raise PeerError(
            f"rank {world.rank} of {world.size}: {action} failed, so another rank died, hung or raised; see its log"
            f" ({str(error).splitlines()[0]})"
        ) from error


@contextmanager
def join_world(address: RankAddress, *, timeout_seconds: float) -> Iterator[World]:
    """Joins the ranks at `address` (NCCL on CUDA devices, gloo on CPUs) and leaves them at the end.

    Raises:
        PeerError: not all ranks came within `timeout_seconds`.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", address.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.update(
        RANK=str(address.rank),
        LOCAL_RANK=str(address.local_rank),
        WORLD_SIZE=str(address.world_size),
        MASTER_ADDR=address.master_address,
        MASTER_PORT=str(address.master_port),
    )
    world = World(rank=address.rank, size=address.world_size, device=device)
    with peers_named(world, f"meeting at {address.master_address}:{address.master_port}"):
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_seconds))
    try:
        yield world
    finally:
        dist.destroy_process_group()
