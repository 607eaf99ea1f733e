"""Checks a node before it trains: its GPUs, its disks, and how it meets the job's other nodes.

The batch script runs it by srun, one process per node, and then reads the reports by --judge.
"""

import argparse
import logging
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.cluster.node_health import NodeReport

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where the reports lie, and what is expected."""
    parser.add_argument("folder", type=Path, help="of the reports, one NODE.json each; below the run's folder")
    parser.add_argument("--nodes", required=True, metavar="A,B,C", help="all nodes of the job, in order")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="that this node must have")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="to meet in (%(default)g)")
    parser.add_argument("--judge", action="store_true", help="print the unfit nodes, and log why")


def run(arguments: argparse.Namespace) -> None:
    """Writes this node's report, or reads all.

    Raises:
        StorageError: the folder cannot be written.
    """
    from pipelines.cluster.node_health import judge
    from ufork.files import make_folder, write_whole

    nodes = arguments.nodes.split(",")
    if arguments.judge:
        verdicts = judge(arguments.folder, nodes)
        for verdict in verdicts:
            log.info("node %s: %s", verdict.node, verdict.describe())
        print(",".join(verdict.node for verdict in verdicts if verdict.faults))
        return
    make_folder(arguments.folder)
    report = _examined(arguments, nodes)
    write_whole(arguments.folder / f"{report.node}.json", report.model_dump_json(indent=1) + "\n")


def _examined(arguments: argparse.Namespace, nodes: list[str]) -> "NodeReport":
    from pipelines.cluster.node_health import CLOCK_SECONDS, NodeReport, free_gb, gpu_faults
    from pipelines.cluster.rendezvous import meet
    from pipelines.launch.ranks import joined_environment
    from ufork.errors import PeerError

    gpus, faults = gpu_faults(arguments.gpus)
    free, too_full = free_gb([arguments.folder, Path(tempfile.gettempdir())])
    faults += too_full
    found = {"node": os.environ.get("SLURMD_NODENAME", socket.gethostname()), "gpus": gpus, "free_gb": free}
    rank_env = joined_environment(os.environ, None)
    if rank_env is None or rank_env.world_size == 1:
        return NodeReport(**found, faults=faults)
    try:
        meeting = meet(rank_env, nodes, on_gpu=bool(gpus), timeout_seconds=arguments.timeout)
    except PeerError as error:
        return NodeReport(**found, faults=faults, missed=str(error))
    if abs(meeting.clock_offset_seconds) > CLOCK_SECONDS:
        faults.append(f"its clock is {meeting.clock_offset_seconds:+.1f} s off that of the other nodes")
    return NodeReport(**found, **vars(meeting), faults=faults)
