"""One exchange of data between nodes, in a process of its own: NCCL can hang, or abort its process.

group, store -> python -m pipelines.cluster.exchange -> gloo or NCCL: clocks, all-reduces -> Measurements
             -> or PeerError when it fails or has not ended in time, whatever it is doing then
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from pydantic import NonNegativeFloat

from pipelines.commands import NoAnswer, Reason, ask
from ufork.config import Config
from ufork.errors import PeerError

ALL_REDUCE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
REPEATS = 5
START_SECONDS = 30.0
"""Time in which the process imports torch and creates a CUDA context, besides the time limit of the exchange."""


class ExchangeGroup(Config):
    """The nodes of one exchange, and where they rendezvous."""

    host: str
    port: int
    """Of the store."""
    prefix: str
    """Of the exchange's keys in the store; no other exchange has it."""
    rank: int
    """Of this node in the group."""
    size: int
    on_gpu: bool
    """Whether to use NCCL on the first GPU, rather than gloo."""
    timeout_seconds: float


class Measurements(Config):
    """What a node has measured together with the others of its group."""

    clock_offset_seconds: float
    """Relative to the median of the group."""
    all_reduce_seconds: NonNegativeFloat
    """Time of one all-reduce of `ALL_REDUCE_BYTES`."""


def exchange(group: ExchangeGroup, environment: Mapping[str, str]) -> Measurements:
    """Exchanges data with the other nodes of `group`, which all must call; returns what was measured.

    Raises:
        PeerError: the exchange failed, or did not end in time.
    """
    command = [sys.executable, "-m", "pipelines.cluster.exchange", group.model_dump_json()]
    try:
        printed = ask(command, environment=environment, timeout_seconds=START_SECONDS + group.timeout_seconds)
    except NoAnswer as answer:
        kind = "NCCL" if group.on_gpu else "gloo"
        hangs = answer.reason is Reason.TIMED_OUT
        last = next((line.strip() for line in reversed(answer.output.splitlines()) if line.strip()), "")
        details = f" ({last})" if last not in str(answer) else ""  # a process that was killed says why in its output
        words = f"{kind} hangs" if hangs else f"{kind} failed: {answer}{details}"
        raise PeerError(words, timed_out=hangs, cause=words) from None
    return Measurements(**json.loads(printed.splitlines()[-1]))


def _run(group: ExchangeGroup) -> Measurements:
    """Runs in the process of the exchange; returns when all nodes have finished, since sockets are shared."""
    timeout = timedelta(seconds=group.timeout_seconds)
    store = dist.TCPStore(group.host, group.port, is_master=False, timeout=timeout, wait_for_workers=False)
    device = torch.device("cuda", 0) if group.on_gpu else torch.device("cpu")
    if group.on_gpu:
        torch.cuda.set_device(device)
    in_group = dist.PrefixStore(group.prefix, store)
    dist.init_process_group(
        "nccl" if group.on_gpu else "gloo",
        store=in_group,
        rank=group.rank,
        world_size=group.size,
        timeout=timeout,
    )
    measured = Measurements(clock_offset_seconds=_clock_offset(device), all_reduce_seconds=_all_reduce_seconds(device))
    in_group.set(f"finished/{group.rank}", "")
    in_group.wait([f"finished/{rank}" for rank in range(group.size)], timeout)
    return measured


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


if __name__ == "__main__":
    print(_run(ExchangeGroup(**json.loads(sys.argv[1]))).model_dump_json(), flush=True)
    os._exit(0)  # destructors of process groups wait for peers, or abort when one has left
