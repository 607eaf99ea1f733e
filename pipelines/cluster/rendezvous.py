"""Rendezvous of one process per node: which nodes are missing, whose clock is off, how long an all-reduce takes.

rank environment -> store: each process reports that it is here
                 -> gloo or NCCL: clocks gathered after a barrier, all-reduces timed -> Rendezvous
"""

import statistics
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ufork.errors import PeerError
from ufork.parallel.rank_environment import RankEnvironment

ALL_REDUCE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Measurements of a node together with the others."""

    clock_offset_seconds: float
    """Relative to the median of all nodes."""
    all_reduce_seconds: float


def rendezvous(rank_env: RankEnvironment, nodes: list[str], *, on_gpu: bool, timeout_seconds: float) -> Rendezvous:
    """Waits for the processes of the other ranks and measures clocks and network together with them.

    Args:
        rank_env: of this process; the job has one rank per node.
        nodes: names of all nodes, by rank.
        on_gpu: whether to use NCCL on the first GPU, rather than gloo.
        timeout_seconds: how long to wait for the others, and for one exchange with them.

    Raises:
        PeerError: names the nodes that did not arrive in time, or says how the exchange failed.
    """
    deadline = time.monotonic() + timeout_seconds
    store = _open_store(rank_env, nodes, timeout_seconds)
    store.set(f"here/{rank_env.rank}", "")
    if missing := _missing_ranks(store, len(nodes), deadline):
        raise _missing_nodes([nodes[rank] for rank in missing], timeout_seconds)
    device = torch.device("cuda" if on_gpu else "cpu", 0)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank_env.rank,
            world_size=rank_env.world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        measured = Rendezvous(
            clock_offset_seconds=_clock_offset(device), all_reduce_seconds=_all_reduce_seconds(device)
        )
        dist.destroy_process_group()
    except RuntimeError as error:
        words = str(error).splitlines()[0]
        raise PeerError(f"the nodes cannot exchange data: {words}", cause=words) from None
    return measured


def _missing_nodes(nodes: list[str], timeout_seconds: float) -> PeerError:
    return PeerError(f"{', '.join(nodes)}: not reached within {timeout_seconds:g} s", timed_out=True)


def _open_store(rank_env: RankEnvironment, nodes: list[str], timeout_seconds: float) -> dist.TCPStore:
    try:
        return dist.TCPStore(
            rank_env.master_address,
            rank_env.master_port,
            rank_env.world_size,
            is_master=rank_env.rank == 0,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
        )
    except (RuntimeError, dist.DistError):
        raise _missing_nodes(nodes[:1], timeout_seconds) from None


def _missing_ranks(store: dist.TCPStore, size: int, deadline: float) -> list[int]:
    while True:
        missing = [rank for rank in range(size) if not store.check([f"here/{rank}"])]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def _clock_offset(device: torch.device) -> float:
    dist.barrier()
    clocks = [torch.zeros(1, dtype=torch.float64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(clocks, torch.tensor([time.time()], dtype=torch.float64, device=device))
    seconds = [clock.item() for clock in clocks]
    return seconds[dist.get_rank()] - statistics.median_low(seconds)


def _all_reduce_seconds(device: torch.device) -> float:
    """Returns the shortest of several times: what the network can do."""
    numbers = torch.zeros(ALL_REDUCE_BYTES[device.type] // 4, device=device)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        dist.all_reduce(numbers)
        numbers[0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds)
