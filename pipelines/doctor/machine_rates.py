"""Measures the rates of this machine, on two ranks that work at the same time.

two ranks -> products, a model's passes, copies, transfers -> MachineProfile of one rank

Each rank is assumed to have its own core; a profile does not model ranks that share cores.
"""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import process_context
from ufork.parallel.rank_environment import RankEnvironment

if TYPE_CHECKING:
    import torch

    from ufork.planning.machine import MachineProfile
    from ufork.planning.workload import Workload

PRODUCT = (2048, 512, 1024)
"""Number of tokens, inputs and outputs of the matrix product that is timed."""
COPIED_BYTES = 1 << 26
SENT_BYTES = 1 << 22
SUMMED_BYTES, NUM_SUMS = 1 << 20, 20
REPEATS = 5


def measure_machine(workload: "Workload") -> "MachineProfile":
    """Measures the rates of one rank, which takes some seconds.

    Raises:
        PeerError: a rank failed.
    """
    from ufork.planning.machine import MachineProfile

    by_rank = start_local_ranks(_rates_on_rank, 2, workload, context=process_context())
    rates = {name: sum(rates[name] for rates in by_rank) / len(by_rank) for name in by_rank[0]}
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return MachineProfile(
        name="measured",
        gflops=max(rates["product"], rates["passes"]) / 1e9,  # small products may be faster
        efficiency=min(rates["passes"] / rates["product"], 1.0),
        memory_gb=memory_bytes / len(os.sched_getaffinity(0)) / 1e9,
        memory_gb_per_s=rates["copied"] / 1e9,
        devices_per_node=1 << 20,
        node_gb_per_s=rates["sent"] / 1e9,
        network_gb_per_s=rates["sent"] / 1e9,
        latency_us=rates["transfer_seconds"] * 1e6,
        collective_gb_per_s=rates["summed"] / 1e9,
        collective_latency_us=rates["sum_seconds"] * 1e6,
        hides_gathers=False,
    )


def _rates_on_rank(rank_env: RankEnvironment, workload: "Workload") -> dict[str, float]:
    """Returns operations per second, bytes per second, and the seconds of the smallest transfer and all-reduce."""
    import torch

    from ufork.parallel.transport.stage_world import join_world

    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=120):
        product, passes = _product_rate(workload), _pass_rate(workload)
        block = torch.ones(COPIED_BYTES, dtype=torch.uint8)
        copied = 2 * COPIED_BYTES / _seconds(block.clone)
        return {
            "product": product,
            "passes": passes,
            "copied": copied,
            "sent": SENT_BYTES / _exchange_seconds(rank_env.rank, SENT_BYTES),
            "transfer_seconds": _exchange_seconds(rank_env.rank, 1),
            "summed": SUMMED_BYTES / _sum_seconds(SUMMED_BYTES),  # a ring of two moves each byte once
            "sum_seconds": _sum_seconds(4),
        }


def _product_rate(workload: "Workload") -> float:
    import torch

    tokens, inputs, outputs = PRODUCT
    x, w = torch.randn(tokens, inputs, dtype=_dtype(workload)), torch.randn(outputs, inputs, dtype=_dtype(workload))
    return 2 * tokens * inputs * outputs / _seconds(lambda: torch.nn.functional.linear(x, w))


def _pass_rate(workload: "Workload") -> float:
    """Returns the operations per second of forward and backward passes, over one packed sequence of each task."""
    from ufork.model.initialization import initialize
    from ufork.model.unifork import UniFork

    model = UniFork(workload.model, workload.dimensions)
    initialize(model, 0)
    model = model.to(_dtype(workload))
    sequences = [workload.sequence(task) for task in workload.tasks]

    def passes() -> None:
        for sequence in sequences:
            model(sequence).backward()

    return sum(workload.cost(task).training for task in workload.tasks) / _seconds(passes)


def _exchange_seconds(rank: int, num_bytes: int) -> float:
    """Returns the time of one transfer from one rank to the other."""
    import torch
    import torch.distributed as dist

    buffer = torch.zeros(num_bytes, dtype=torch.uint8)

    def there_and_back() -> None:
        for sender in (0, 1):
            dist.send(buffer, 1 - rank) if rank == sender else dist.recv(buffer, 1 - rank)

    return _seconds(there_and_back) / 2


def _sum_seconds(num_bytes: int) -> float:
    """Returns the time of one all-reduce of fp32 numbers over both ranks, averaged over many as in a pass."""
    import torch
    import torch.distributed as dist

    buffer = torch.zeros(num_bytes // 4)

    def sums() -> None:
        for _ in range(NUM_SUMS):
            dist.all_reduce(buffer)

    return _seconds(sums) / NUM_SUMS


def _seconds(action: Callable[[], object]) -> float:
    action()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def _dtype(workload: "Workload") -> "torch.dtype":
    import torch

    return torch.bfloat16 if workload.precision == "bf16" else torch.float32
