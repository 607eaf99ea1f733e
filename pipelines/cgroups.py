"""Limits that containers and batch systems set for a process by control groups (cgroups), of version 2 or 1.

/proc/self/cgroup -> the groups around this process -> their files in /sys/fs/cgroup -> the smallest limit
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores(own_cgroup: Path = OWN_CGROUP, cgroups: Path = CGROUPS) -> int:
    """Returns the number of cores that this process may keep busy: of its affinity, within its quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, math.ceil(min(_quotas(own_cgroup, cgroups), default=cores))))


def memory_limit(own_cgroup: Path = OWN_CGROUP, cgroups: Path = CGROUPS) -> float:
    """Returns the bytes of memory that this process may use; infinity where no group limits it."""
    limits = [
        *_words(own_cgroup, cgroups, "", "memory.max"),
        *_words(own_cgroup, cgroups, "memory", "memory.limit_in_bytes"),
    ]
    return min((int(limit) for (limit,) in limits if limit.isdecimal()), default=math.inf)


def _quotas(own_cgroup: Path, cgroups: Path) -> list[float]:
    """Returns the quotas in cores of the groups; those without a quota are skipped."""
    quotas = _words(own_cgroup, cgroups, "cpu", "cpu.cfs_quota_us")
    periods = _words(own_cgroup, cgroups, "cpu", "cpu.cfs_period_us")
    limits = [*_words(own_cgroup, cgroups, "", "cpu.max"), *(q + p for q, p in zip(quotas, periods, strict=False))]
    return [int(quota) / int(period) for quota, period in limits if quota.isdecimal()]


def _words(own_cgroup: Path, cgroups: Path, controller: str, name: str) -> Iterator[list[str]]:
    """Yields the words in the files `name` of the groups around this process, of a controller of version 1, or of 2."""
    for path in dict.fromkeys(("/", *_own_paths(own_cgroup, controller))):
        for group in (Path(path), *Path(path).parents):
            file = cgroups / controller / group.relative_to("/") / name
            if words := " ".join(lines_of(file)).split():
                yield words


def _own_paths(own_cgroup: Path, controller: str) -> list[str]:
    lines = (line.split(":", 2) for line in lines_of(own_cgroup))
    return [path for _, controllers, path in lines if controller in controllers.split(",")]


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a file that the kernel writes; none where there is no such file."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
