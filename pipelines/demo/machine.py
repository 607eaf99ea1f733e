"""Finds out in a few seconds what this machine can do for the demo.

/proc, cgroups, a matrix product in fp32 and in bf16 -> Machine

Cores are those that this process may use: of its CPU affinity, within the quota of its container.
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.cgroups import lines_of, usable_cores
from pipelines.doctor.machine import memory_gb
from ufork.config import Config
from ufork.parallel.nvidia_devices import uses_cuda

CPU_TIMES = Path("/proc/stat")
MEASUREMENTS = 3
"""Products are measured this many times and the fastest counts, so that other programs disturb it less."""
BUSY_SECONDS = 0.5
"""Time over which the load of other programs is measured."""
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
"""Features of CPUs that decide how fast they multiply matrices."""


class Machine(Config):
    """What a machine can do."""

    cpu: str
    """Model of the CPU, with its `CPU_FLAGS`; or name of the GPU."""
    cores: int
    fp32_gflops: float
    """Rate of matrix products over all cores, in billions of operations per second."""
    bf16_gflops: float
    memory_gb: float
    """Free memory."""
    disk_gb: float
    """Free space for the run folder."""
    busy_cores: float = 0.0
    """Cores that other programs kept busy."""
    num_gpus: int = 0

    @property
    def gflops(self) -> float:
        """The rate in the faster precision."""
        return max(self.fp32_gflops, self.bf16_gflops)

    def describe(self) -> str:
        """Returns one line for people."""
        busy = f", {self.busy_cores:.1f} of them busy with other programs" if self.busy_cores >= 0.3 else ""
        return (
            f"{self.cores} cores{busy} ({self.cpu}), {self.fp32_gflops:,.0f} GFLOP/s in fp32,"
            f" {self.bf16_gflops:,.0f} in bf16, {self.memory_gb:.0f} GB memory and {self.disk_gb:.0f} GB disk free"
        )


def probe_machine(folder: Path) -> Machine:
    """Measures this machine; takes about three seconds, of which importing torch is most.

    Args:
        folder: of the run, which need not exist yet.
    """
    busy = busy_cores()
    import torch

    from pipelines.doctor.device_rates import CPU_PRODUCT, product_rate

    on_cuda, cores = uses_cuda(os.environ), usable_cores()
    device = torch.device("cuda" if on_cuda else "cpu")
    torch.set_num_threads(cores)
    fp32, bf16 = (
        max(product_rate(CPU_PRODUCT, dtype, device) for _ in range(MEASUREMENTS)) / 1e9
        for dtype in (torch.float32, torch.bfloat16)
    )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return Machine(
        cpu=torch.cuda.get_device_name() if on_cuda else cpu_name(),
        cores=cores,
        fp32_gflops=fp32,
        bf16_gflops=bf16,
        memory_gb=memory_gb()[1],
        disk_gb=shutil.disk_usage(existing).free / 2**30,
        busy_cores=busy,
        num_gpus=torch.cuda.device_count() if on_cuda else 0,
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the model of the CPU and those of `CPU_FLAGS` that it has."""
    entries = [(key.strip(), value.strip()) for line in lines_of(cpuinfo) for key, _, value in [line.partition(":")]]
    first = dict(reversed(entries))
    flags = first.get("flags", first.get("Features", "")).split()
    return " ".join([first.get("model name", "CPU"), *(flag for flag in CPU_FLAGS if flag in flags)])


def busy_cores(seconds: float = BUSY_SECONDS) -> float:
    """Returns how many cores of the machine were busy during `seconds` in which this process sleeps."""
    before, began = _busy_ticks(lines_of(CPU_TIMES)), time.monotonic()
    time.sleep(seconds)
    ticks = _busy_ticks(lines_of(CPU_TIMES)) - before
    return ticks / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began)


def _busy_ticks(stat: Sequence[str]) -> int:
    """Returns the ticks that all CPUs together have worked, from the first line of /proc/stat."""
    ticks = [int(word) for word in stat[0].split()[1:]] if stat else []
    return sum(ticks[:8]) - sum(ticks[3:5])  # user ... steal, without idle and iowait
