"""One process of each node meets the others: who is missing, whose clock is off, how long an all-reduce takes.

address -> store: each says that it is here -> gloo or NCCL: clocks gathered after a barrier, all-reduces timed
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
class Meeting:
    """What a node learnt from meeting the others."""

    clock_offset_seconds: float
    all_reduce_seconds: float


def meet(rank_env: RankEnvironment, names: list[str], *, on_gpu: bool, timeout_seconds: float) -> Meeting:
    """Meets the processes that have the other ranks; `names` are all ranks' nodes.

    Raises:
        PeerError: names the nodes that did not come in time, or says how the exchange failed.
    """
    deadline = time.monotonic() + timeout_seconds
    store = _open_store(rank_env, names, timeout_seconds)
    store.set(f"here/{rank_env.rank}", "")
    if missing := _missing(store, len(names), deadline):
        raise PeerError(f"{', '.join(names[rank] for rank in missing)}: not there within {timeout_seconds:g} s")
    device = torch.device("cuda" if on_gpu else "cpu", 0)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank_env.rank,
            world_size=rank_env.world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        meeting = Meeting(clock_offset_seconds=_clock_offset(device), all_reduce_seconds=_all_reduce_seconds(device))
        dist.destroy_process_group()
    except RuntimeError as error:
        raise PeerError(f"the nodes cannot exchange data: {str(error).splitlines()[0]}") from None
    return meeting


def _open_store(rank_env: RankEnvironment, names: list[str], timeout_seconds: float) -> dist.TCPStore:
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
        raise PeerError(f"{names[0]}: not there within {timeout_seconds:g} s") from None


def _missing(store: dist.TCPStore, size: int, deadline: float) -> list[int]:
    while True:
        missing = [rank for rank in range(size) if not store.check([f"here/{rank}"])]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def _clock_offset(device: torch.device) -> float:
    dist.barrier()
    clocks = [torch.zeros(1, dtype=torch.float64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(clocks, torch.tensor([time.time()], dtype=torch.float64, device=device))
    told = [clock.item() for clock in clocks]
    return told[dist.get_rank()] - statistics.median_low(told)


def _all_reduce_seconds(device: torch.device) -> float:
    """The quickest of some: what the network can do."""
    numbers = torch.zeros(ALL_REDUCE_BYTES[device.type] // 4, device=device)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        dist.all_reduce(numbers)
        numbers[0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds)
