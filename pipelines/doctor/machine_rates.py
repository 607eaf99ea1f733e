"""Measures the rates of this machine, on two ranks that work at the same time.

two ranks, or one where there is one GPU -> rates of the device, transfers -> MachineProfile of one rank

Each rank is assumed to have its own core or GPU; a profile does not model ranks that share cores.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import process_context
from ufork.parallel.nvidia_devices import uses_cuda
from ufork.parallel.rank_environment import RankEnvironment

if TYPE_CHECKING:
    from ufork.planning.machine import MachineProfile
    from ufork.planning.workload import Workload


def measure_machine(workload: "Workload") -> "MachineProfile":
    """Measures the rates of one rank, which takes some seconds: on CUDA where there is a device, else on the CPU.

    Raises:
        PeerError: a rank failed.
    """
    if not uses_cuda(os.environ):
        return _cpu_profile(_measure(2, workload)[1])
    import torch

    return cuda_profile(*_measure(ranks_for(torch.cuda.device_count()), workload))


def ranks_for(num_gpus: int) -> int:
    """Returns the ranks that measure: one also where torch finds no GPU, which then raises the error of a rank."""
    return max(1, min(2, num_gpus))


def _measure(num_ranks: int, workload: "Workload") -> tuple[str, dict[str, float]]:
    """Returns the device's name and the rates, averaged over ranks that work at the same time."""
    by_rank = start_local_ranks(_rates_on_rank, num_ranks, workload, context=process_context())
    _, first = by_rank[0]
    return by_rank[0][0], {rate: sum(rates[rate] for _, rates in by_rank) / num_ranks for rate in first}


def _cpu_profile(rates: Mapping[str, float]) -> "MachineProfile":
    from ufork.planning.machine import MachineProfile

    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return MachineProfile(
        name="measured",
        gflops=max(rates["product"], rates["passes"]) / 1e9,  # small products may be faster
        efficiency=min(rates["passes"] / rates["product"], 1.0),
        memory_gb=memory_bytes / len(os.sched_getaffinity(0)) / 1e9,
        memory_gb_per_s=rates["copied"] / 1e9,
        devices_per_node=1 << 20,
        network_gb_per_s=rates["sent"] / 1e9,
        hides_gathers=False,
        **_links(rates),
    )


def cuda_profile(name: str, rates: Mapping[str, float]) -> "MachineProfile":
    """Returns the profile of a GPU: what `rates` has, and the datasheet of the card `name`, or an H100's, for the rest.

    Rates between devices need two of them, and those between nodes are not measured.
    """
    from ufork.planning.machine import PROFILES, KernelRates

    known = next((profile for key, profile in PROFILES.items() if key.upper() in name.upper()), PROFILES["h100"])
    peak = max(rates["peak"], rates["product"])
    attention = rates["attention"] / 1e9 if "attention" in rates else None
    measured = {
        "name": name,
        "gflops": peak / 1e9,
        "fp32_gflops": None,
        "native_bf16": rates["native_bf16"] == 1,
        "efficiency": rates["product"] / peak,
        "kernels": KernelRates(
            attention_gflops=attention, memory_efficiency=1.0, launch_us=rates["launch_seconds"] * 1e6
        ),
        "memory_gb": rates["memory_bytes"] / 1e9,
        "memory_gb_per_s": rates["copied"] / 1e9,
        "devices_per_node": int(rates["devices"]),
    }
    return known.model_copy(update=measured | (_links(rates) if "sent" in rates else {}))


def _links(rates: Mapping[str, float]) -> dict[str, float]:
    return {
        "node_gb_per_s": rates["sent"] / 1e9,
        "latency_us": rates["transfer_seconds"] * 1e6,
        "collective_gb_per_s": rates["summed"] / 1e9,
        "collective_latency_us": rates["sum_seconds"] * 1e6,
    }


def _rates_on_rank(rank_env: RankEnvironment, workload: "Workload") -> tuple[str, dict[str, float]]:
    """Returns the device's name, and operations and bytes per second; seconds of the smallest transfer and sum."""
    import torch

    from pipelines.doctor.device_rates import device_rates
    from pipelines.doctor.link_rates import link_rates
    from ufork.parallel.transport.stage_world import join_world

    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=120) as world:
        on_cuda = world.device.type == "cuda"
        if on_cuda and not world.native_bf16:
            workload = replace(workload, precision="fp32")
        rates = device_rates(workload, world.device)
        if rank_env.world_size > 1:
            rates |= link_rates(rank_env.rank, world.device)
        if not on_cuda:
            return "cpu", rates
        card = torch.cuda.get_device_properties(world.device)
        return card.name, rates | {
            "memory_bytes": card.total_memory,
            "devices": torch.cuda.device_count(),
            "native_bf16": float(world.native_bf16),
        }
