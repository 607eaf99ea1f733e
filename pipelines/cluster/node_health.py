"""Checks whether a node is fit to train: its GPUs, its disks, and its connection to the job's other nodes.

one process per node -> NodeReport -> FOLDER/NODE.json, written before the exchange with other nodes and again after it
FOLDER, all nodes of the job -> read_reports: the faults of each node; a missing report is one -> unfit_nodes
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import NonNegativeFloat

from pipelines.commands import NoAnswer, ask
from pipelines.nvidia_smi import Table, number, parse_table, table_command
from ufork.config import Config
from ufork.errors import ConfigError, PeerError

GPU_FIELDS = ("uuid", "index", "name", "memory.used", "ecc.errors.uncorrected.volatile.total")
"""Fields of each GPU; memory is in MiB. Its utilization is a sample, and high without a persistence daemon."""
PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name")
"""Fields of each process that computes on a GPU; in a container the list may be empty."""
GPU_SECONDS = 120.0
"""Time limit of nvidia-smi, which takes long where no persistence daemon keeps the driver loaded."""
BUSY_MIB = 1024.0
"""A GPU with more memory in use serves another job: an idle one holds some hundred MiB at most."""
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
    """Why it did not exchange data with all others, where nothing shows that this node is at fault."""
    unreached: list[str] = []
    """Nodes that it did not reach, or that were found to be at fault."""
    remarks: list[str] = []
    """What nvidia-smi said besides the GPUs; no fault."""

    def describe(self) -> str:
        """Returns the report in one line."""
        speed = "" if self.all_reduce_seconds is None else f", all-reduce in {self.all_reduce_seconds * 1e3:.1f} ms"
        found = "; ".join(filter(None, [*self.faults, self.missed])) or f"fit{speed}"
        return "; ".join([found, *(f"nvidia-smi: {remark}" for remark in self.remarks)])


@dataclass(frozen=True, kw_only=True)
class GpuCheck:
    """What nvidia-smi shows of the GPUs of this node."""

    names: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_gpus(expected: int, environment: Mapping[str, str]) -> GpuCheck:
    """Asks nvidia-smi, if GPUs are expected."""
    if not expected:
        return GpuCheck()
    try:
        gpus = _table("gpu", GPU_FIELDS, environment)
        processes = _table("compute-apps", PROCESS_FIELDS, environment)
    except NoAnswer as reason:
        return GpuCheck(faults=[f"nvidia-smi gives no answer: {reason}"])
    faults = [fault for gpu in gpus.rows for fault in _faults_of(gpu, processes.rows)]
    if len(gpus.rows) < expected:
        faults.insert(0, f"{len(gpus.rows)} GPUs, expected {expected}")
    return GpuCheck(names=[gpu["name"] for gpu in gpus.rows], faults=faults, remarks=gpus.remarks)


def _table(kind: str, fields: Sequence[str], environment: Mapping[str, str]) -> Table:
    printed = ask(table_command(kind, fields), environment=environment, timeout_seconds=GPU_SECONDS)
    return parse_table(printed, fields)


def _faults_of(gpu: Mapping[str, str], processes: Sequence[Mapping[str, str]]) -> list[str]:
    name, faults = f"GPU {gpu['index']}", []
    users = [f"{each['process_name']} (pid {each['pid']})" for each in processes if each["gpu_uuid"] == gpu["uuid"]]
    used_mib = number(gpu["memory.used"]) or 0
    if users or used_mib > BUSY_MIB:
        by = f" by {', '.join(users)}" if users else ""
        faults.append(f"{name} is in use{by} ({gpu['memory.used']} MiB)")
    errors = number(gpu["ecc.errors.uncorrected.volatile.total"])
    if errors:
        faults.append(f"{name} has {errors:g} uncorrected memory errors")
    return faults


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


def unfit_nodes(reports: Sequence[NodeReport]) -> list[str]:
    """Returns the nodes to exclude: those with faults, and those that most others did not reach.

    A single node that did not reach another proves nothing about either.

    Raises:
        PeerError: nodes could not exchange data, and nothing shows which of them is at fault.
    """
    by_others = {
        report.node: [other for other in reports if other is not report and report.node in other.unreached]
        for report in reports
    }
    unfit = [
        report.node
        for report in reports
        if report.faults or len(by_others[report.node]) > max(1, (len(reports) - 1) / 2)
    ]
    if not unfit and (apart := [report for report in reports if report.missed]):
        raise PeerError(
            f"{', '.join(report.node for report in apart)} did not exchange data with all nodes, and nothing shows"
            f" which node is at fault; the first of them {apart[0].missed}. Set NCCL_DEBUG=INFO, check"
            " NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, or start without this check (ufork submit --no-node-check)"
        )
    return unfit
