"""Checks of the machine itself: cores, memory, files, disks, driver. All but `gpus` answer at once.

/proc, /sys and statvfs -> Finding
"""

import os
import resource
import shutil
from pathlib import Path

from pipelines.commands import NoAnswer, ask, has_program
from pipelines.doctor.finding import Finding, Mark, Surroundings

GB = 2**30
LOW_DISK_GB = 20
"""Two checkpoints of half a billion parameters, and their drafts."""
LOW_TEMPORARY_GB = 1
LOW_SHARED_GB = 1
LOW_OPEN_FILES = 4096
"""A process keeps every shard that it reads open, and a tensor on its way from a loader process is a file too."""
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")


def cores_and_memory(around: Surroundings) -> Finding:
    """Those that this process may use: of the machine, or of its container or job."""
    cores = len(os.sched_getaffinity(0))
    limit, free = _memory_gb()
    found = f"{cores} cores, {limit:.0f} GB of memory, {free:.0f} GB of it free"
    return Finding(name="cores, memory", found=found)


def _memory_gb() -> tuple[float, float]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    kilobytes = {line[0].rstrip(":"): int(line[1]) for line in lines}
    limit, free = kilobytes["MemTotal"] / 2**20, kilobytes["MemAvailable"] / 2**20
    if CGROUP_MEMORY.exists() and (told := CGROUP_MEMORY.read_text(encoding="ascii").strip()) != "max":
        limit = min(limit, int(told) / GB)
    return limit, min(limit, free)


def open_files(around: Surroundings) -> Finding:
    """How many a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= LOW_OPEN_FILES or soft == resource.RLIM_INFINITY:
        return Finding(name="open files", found=f"up to {soft:,}" if soft > 0 else "no limit")
    return Finding(
        name="open files",
        mark=Mark.PROBLEM,
        found=f"only {soft:,} (up to {hard:,} can be asked for)",
        instead="reads sources of fewer shards than that; each stays open",
        remedy=f"ulimit -n {max(LOW_OPEN_FILES, min(hard, 65536))}, before ufork starts",
    )


def run_folder(around: Surroundings) -> Finding:
    """The disk that runs are kept on."""
    there = next(path for path in (around.folder, *around.folder.absolute().parents) if path.exists())
    where, free = f"disk of {around.folder}", shutil.disk_usage(there).free / GB
    if not os.access(there, os.W_OK):
        return Finding(
            name=where,
            mark=Mark.PROBLEM,
            found=f"{there} cannot be written",
            remedy="permit writing there, or give another run.folder",
            required=True,
        )
    return _space(where, free, LOW_DISK_GB, "drops a save that finds no space, tells so, and trains on")


def temporary(around: Surroundings) -> Finding:
    """Where temporary files go."""
    return _space("/tmp", shutil.disk_usage("/tmp").free / GB, LOW_TEMPORARY_GB, "needs it for wandb and for compilers")


def _space(name: str, free_gb: float, low_gb: float, instead: str) -> Finding:
    found = f"{free_gb:,.0f} GB free" if free_gb >= 10 else f"{free_gb:,.1f} GB free"
    if free_gb >= low_gb:
        return Finding(name=name, found=found)
    return Finding(name=name, mark=Mark.PROBLEM, found=found, instead=instead, remedy=f"free {low_gb} GB or more there")


def shared_memory(around: Surroundings) -> Finding:
    """What loader processes hand rows through."""
    size = shutil.disk_usage("/dev/shm").total / GB
    if size >= LOW_SHARED_GB:
        return Finding(name="/dev/shm", found=f"{size:,.0f} GB")
    return Finding(
        name="/dev/shm",
        mark=Mark.PROBLEM,
        found=f"only {size * 1024:,.0f} MB, as containers have it",
        instead="hands rows through it where data.num_workers > 0; data.num_workers=0 needs none",
        remedy="docker run --ipc=host, or --shm-size=8g",
    )


def gpus(around: Surroundings) -> Finding:
    """The devices that the driver has, whether torch can use them or not."""
    if not has_program("nvidia-smi", around):
        return Finding(
            name="GPUs",
            mark=Mark.ABSENT,
            found="no nvidia-smi on the PATH",
            instead="takes those that torch can use" if around.has_gpu else "trains on the CPU",
            remedy="a machine with NVIDIA GPUs and their driver",
        )
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        rows = [line.split(", ") for line in ask(query, around).splitlines()]
        kinds = [f"{name}, {int(megabytes) / 1024:.0f} GB" for name, megabytes, _ in rows]
        driver = rows[0][2]
    except (NoAnswer, ValueError, IndexError) as error:
        return Finding(
            name="GPUs",
            mark=Mark.PROBLEM,
            found=f"nvidia-smi gives no list: {error}",
            instead="takes those that torch can use",
            remedy="run nvidia-smi by hand; a driver that hangs wants the node restarted",
        )
    each = "; ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return Finding(name="GPUs", found=f"{each}; driver {driver}")
