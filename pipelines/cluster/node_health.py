"""Checks whether a node is fit to train: its GPUs, its disks, and its connection to the job's other nodes.

one process per node -> NodeReport -> FOLDER/NODE.json
FOLDER, all nodes of the job -> read_reports: the faults of each node; a missing report is one
"""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import NonNegativeFloat

from pipelines.commands import NoAnswer, ask
from ufork.config import Config
from ufork.errors import ConfigError

GPU_QUERY = ("index", "name", "memory.used", "utilization.gpu", "ecc.errors.uncorrected.volatile.total")
"""Fields of nvidia-smi; memory is in MiB, utilization in per cent."""
GPU_SECONDS = 120.0
"""Time limit of nvidia-smi, which takes long where no persistence daemon keeps the driver loaded."""
BUSY_MIB, BUSY_PERCENT = 1024.0, 10.0
"""A GPU above either is in use by another job: an idle one holds some hundred MiB at most."""
FREE_GB = 5.0
"""Least free space on each disk: less does not hold a checkpoint of a small model."""
CLOCK_SECONDS = 2.0
"""Largest clock offset; more than what the end of a barrier differs by between nodes."""


class NodeReport(Config):
    """Report of the check of one node."""

    node: str
    gpus: list[str] = []
    """Names of the GPUs."""
    free_gb: Mapping[str, NonNegativeFloat] = {}
    """Free space by folder, in GB of 10^9 bytes."""
    clock_offset_seconds: float | None = None
    """Relative to the median of all nodes; None without other nodes."""
    all_reduce_seconds: NonNegativeFloat | None = None
    """Time of one all-reduce of `ALL_REDUCE_BYTES` over all nodes."""
    faults: list[str] = []
    """Faults of this node."""
    missed: str = ""
    """Reason for which it could not reach the others; the fault may be theirs."""

    def describe(self) -> str:
        """Returns the report in one line."""
        speed = "" if self.all_reduce_seconds is None else f", all-reduce in {self.all_reduce_seconds * 1e3:.1f} ms"
        return "; ".join(filter(None, [*self.faults, self.missed])) or f"fit{speed}"


def gpu_faults(expected: int, environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Asks nvidia-smi, if GPUs are expected; returns their names and what is wrong with them."""
    if not expected:
        return [], []
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        printed = ask(command, environment=environment, timeout_seconds=GPU_SECONDS)
        gpus = [dict(zip(GPU_QUERY, map(str.strip, line), strict=True)) for line in csv.reader(printed.splitlines())]
    except NoAnswer as reason:
        return [], [f"nvidia-smi gives no answer: {reason}"]
    except ValueError:
        return [], [f"nvidia-smi gives no list of GPUs: {printed.splitlines()[0]}"]
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
    """Returns 0 for what a GPU does not report, such as "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def free_gb(folders: Sequence[Path]) -> tuple[dict[str, float], list[str]]:
    """Returns the free space on the disks of `folders`, and which of them have too little or cannot be examined."""
    free, faults = {}, []
    for folder in folders:
        try:
            gb = free[str(folder)] = shutil.disk_usage(folder).free / 1e9
        except OSError as error:
            faults.append(f"{folder}: cannot be examined ({error.strerror})")
            continue
        if gb < FREE_GB:
            faults.append(f"{folder}: {gb:.1f} GB free, expected {FREE_GB:g}")
    return free, faults


def read_reports(folder: Path, nodes: Sequence[str]) -> list[NodeReport]:
    """Returns the report of each of `nodes` in `folder`; a missing or damaged one is a fault of the node."""
    return [_report_of(folder, node) for node in nodes]


def _report_of(folder: Path, node: str) -> NodeReport:
    path = folder / f"{node}.json"
    try:
        return NodeReport.from_mapping(json.loads(path.read_bytes()), origin=str(path))
    except (OSError, ValueError, RecursionError, ConfigError):
        return NodeReport(node=node, faults=["no report: its check did not start, or did not finish"])
