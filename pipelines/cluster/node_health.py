"""Whether a node is fit to train: its GPUs, its disks, and how it meets the job's other nodes.

one process per node -> NodeReport -> FOLDER/NODE.json
FOLDER, all nodes of the job -> judge: why which nodes are unfit; one without a report is
"""

import csv
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import NonNegativeFloat

from ufork.config import Config
from ufork.errors import ConfigError

GPU_QUERY = ("index", "name", "memory.used", "utilization.gpu", "ecc.errors.uncorrected.volatile.total")
"""Of nvidia-smi; MiB and per cent."""
BUSY_MIB, BUSY_PERCENT = 1024.0, 10.0
"""Above which a GPU is somebody else's: an idle one holds some hundred MiB at most."""
FREE_GB = 5.0
"""On each disk: less does not hold a checkpoint of a small model."""
CLOCK_SECONDS = 2.0
"""Beyond what a barrier's end differs by between nodes."""


class NodeReport(Config):
    """What one node found."""

    node: str
    gpus: list[str] = []
    """Their names."""
    free_gb: Mapping[str, NonNegativeFloat] = {}
    """By folder."""
    clock_offset_seconds: float | None = None
    """To the middle one of all nodes; None without other nodes."""
    all_reduce_seconds: NonNegativeFloat | None = None
    """Of `ALL_REDUCE_BYTES` over all nodes."""
    faults: list[str] = []
    """Of this node."""
    missed: str = ""
    """Why it did not meet the others, who may be at fault."""

    def describe(self) -> str:
        """In one line."""
        met = "" if self.all_reduce_seconds is None else f", all-reduce in {self.all_reduce_seconds * 1e3:.1f} ms"
        return "; ".join(filter(None, [*self.faults, self.missed])) or f"fit{met}"


def gpu_faults(expected: int) -> tuple[list[str], list[str]]:
    """Asks nvidia-smi, where GPUs are expected; their names, and what is wrong with them."""
    if not expected:
        return [], []
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], [f"nvidia-smi does not answer ({error})"]
    if done.returncode:
        return [], [f"nvidia-smi: {done.stdout.strip() or done.stderr.strip()}"]
    gpus = [dict(zip(GPU_QUERY, map(str.strip, row), strict=True)) for row in csv.reader(done.stdout.splitlines())]
    faults = [fault for gpu in gpus for fault in _faults_of(gpu)]
    if len(gpus) < expected:
        faults.insert(0, f"{len(gpus)} GPUs, expected {expected}")
    return [gpu["name"] for gpu in gpus], faults


def _faults_of(gpu: Mapping[str, str]) -> list[str]:
    _, _, used, utilisation, errors = (gpu[field] for field in GPU_QUERY)
    name = f"GPU {gpu['index']}"
    faults = []
    if _number(used) > BUSY_MIB or _number(utilisation) > BUSY_PERCENT:
        faults.append(f"{name} is in use ({used} MiB, {utilisation} %)")
    if _number(errors) > 0:
        faults.append(f"{name} has {errors} uncorrected memory errors")
    return faults


def _number(text: str) -> float:
    """0 for what a GPU does not tell, as "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def free_gb(folders: Sequence[Path]) -> tuple[dict[str, float], list[str]]:
    """What the disks of `folders` have free, and which have too little."""
    free = {str(folder): shutil.disk_usage(folder).free / 1e9 for folder in folders}
    return free, [f"{folder}: {gb:.1f} GB free, expected {FREE_GB:g}" for folder, gb in free.items() if gb < FREE_GB]


def judge(folder: Path, nodes: Sequence[str]) -> list[NodeReport]:
    """What each of `nodes` left in `folder`; a node that left nothing is at fault."""
    return [_report_of(folder, node) for node in nodes]


def _report_of(folder: Path, node: str) -> NodeReport:
    path = folder / f"{node}.json"
    try:
        return NodeReport.from_mapping(json.loads(path.read_bytes()), origin=str(path))
    except (OSError, ValueError, ConfigError):
        return NodeReport(node=node, faults=["no report: its check did not start or did not end"])
