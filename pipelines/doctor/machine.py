"""Checks of the machine itself: cores, memory, files, disks. All answer at once.

/proc, /sys and statvfs -> Finding
"""

import os
import resource
import shutil
from pathlib import Path

from pipelines.cgroups import memory_limit, usable_cores
from pipelines.doctor.finding import Finding, Mark
from pipelines.doctor.surroundings import Surroundings

GB = 2**30
LOW_DISK_GB = 20
"""Space for two checkpoints of half a billion parameters, complete or being written."""
LOW_TEMPORARY_GB = 1
LOW_SHARED_GB = 1
LOW_OPEN_FILES = 4096
"""A process keeps the shards that it read last open, as many as a sixteenth of the limit for each source."""


def cores_and_memory(around: Surroundings) -> Finding:
    """Reports the cores and memory that this process may use: the machine's, its container's or its job's."""
    cores = usable_cores()
    limit, free = memory_gb()
    found = f"{cores} cores, {limit:.0f} GB of memory, {free:.0f} GB of it free"
    return Finding(name="cores, memory", found=found)


def memory_gb() -> tuple[float, float]:
    """Returns the memory that this process may use and how much of it is free, in GB."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    kilobytes = {line[0].rstrip(":"): int(line[1]) for line in lines}
    limit, free = kilobytes["MemTotal"] / 2**20, kilobytes["MemAvailable"] / 2**20
    limit = min(limit, memory_limit() / GB)
    return limit, min(limit, free)


def open_files(around: Surroundings) -> Finding:
    """Checks how many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= LOW_OPEN_FILES or soft == resource.RLIM_INFINITY:
        return Finding(name="open files", found=f"up to {soft:,}" if soft > 0 else "no limit")
    return Finding(
        name="open files",
        mark=Mark.PROBLEM,
        found=f"only {soft:,} (the hard limit is {hard:,})",
        instead="opens the shards of large sources again and again; reading them is slower",
        remedy=f"ulimit -n {max(LOW_OPEN_FILES, min(hard, 65536))}, before ufork starts",
    )


def run_folder(around: Surroundings) -> Finding:
    """Checks the disk of the run folders."""
    existing = next(path for path in (around.folder, *around.folder.absolute().parents) if path.exists())
    where, free = f"disk of {around.folder}", shutil.disk_usage(existing).free / GB
    if not os.access(existing, os.W_OK):
        return Finding(
            name=where,
            mark=Mark.PROBLEM,
            found=f"{existing} cannot be written",
            remedy="permit writing there, or choose another run.folder",
            required=True,
        )
    return _space(where, free, LOW_DISK_GB, "drops a checkpoint that finds no space, reports it, and trains on")


def temporary(around: Surroundings) -> Finding:
    """Checks the disk of temporary files."""
    return _space("/tmp", shutil.disk_usage("/tmp").free / GB, LOW_TEMPORARY_GB, "needs it for wandb and for compilers")


def _space(name: str, free_gb: float, low_gb: float, instead: str) -> Finding:
    found = f"{free_gb:,.0f} GB free" if free_gb >= 10 else f"{free_gb:,.1f} GB free"
    if free_gb >= low_gb:
        return Finding(name=name, found=found)
    return Finding(
        name=name, mark=Mark.PROBLEM, found=found, instead=instead, remedy=f"free at least {low_gb} GB there"
    )


def shared_memory(around: Surroundings) -> Finding:
    """Checks the shared memory through which NCCL connects the GPUs of a machine."""
    size = shutil.disk_usage("/dev/shm").total / GB
    if size >= LOW_SHARED_GB:
        return Finding(name="/dev/shm", found=f"{size:,.0f} GB")
    return Finding(
        name="/dev/shm",
        mark=Mark.PROBLEM,
        found=f"only {size * 1024:,.0f} MB, the default of containers",
        instead="connects the GPUs of a machine through it (NCCL); loader processes need none",
        remedy="docker run --ipc=host, or --shm-size=8g",
    )
