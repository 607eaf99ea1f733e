"""Checks a node before it trains: its GPUs, its disks, and its connection to the job's other nodes.

The batch script runs it under srun, one process per node, and then lists the unfit nodes with --summarize.
"""

import argparse
import logging
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.text_arguments import seconds, whole_number

if TYPE_CHECKING:
    from pipelines.cluster.node_health import NodeReport

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of the reports, and what is expected of a node."""
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="folder of the reports, one NODE.json each, below the run's folder"
    )
    parser.add_argument("--nodes", required=True, metavar="A,B,C", help="names of all nodes of the job, in order")
    parser.add_argument(
        "--gpus", type=whole_number, default=0, metavar="N", help="number of GPUs that this node must have"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="time limit for reaching the other nodes (%(default)g)",
    )
    parser.add_argument(
        "--summarize",
        action="store_true",
        help="check nothing; print the names of unfit nodes and log all reports",
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes this node's report, or reads all reports.

    Raises:
        StorageError: the folder cannot be written.
    """
    from pipelines.cluster.node_health import read_reports
    from ufork.files import make_folder, write_whole

    nodes = arguments.nodes.split(",")
    if arguments.summarize:
        reports = read_reports(arguments.folder, nodes)
        for report in reports:
            log.info("node %s: %s", report.node, report.describe())
        print(",".join(report.node for report in reports if report.faults))
        return
    make_folder(arguments.folder)
    report = _examine(arguments, nodes)
    write_whole(arguments.folder / f"{report.node}.json", report.model_dump_json(indent=1) + "\n")


def _examine(arguments: argparse.Namespace, nodes: list[str]) -> "NodeReport":
    from pipelines.cluster.node_health import CLOCK_SECONDS, NodeReport, free_gb, gpu_faults
    from pipelines.cluster.rendezvous import rendezvous
    from pipelines.launch.ranks import joined_environment
    from ufork.errors import PeerError

    gpus, faults = gpu_faults(arguments.gpus, os.environ)
    free, too_full = free_gb([arguments.folder, Path(tempfile.gettempdir())])
    faults += too_full
    found = {"node": os.environ.get("SLURMD_NODENAME", socket.gethostname()), "gpus": gpus, "free_gb": free}
    rank_env = joined_environment(os.environ, None)
    if rank_env is None or rank_env.world_size == 1:
        return NodeReport(**found, faults=faults)
    try:
        measured = rendezvous(rank_env, nodes, on_gpu=bool(gpus), timeout_seconds=arguments.timeout)
    except PeerError as error:
        return NodeReport(**found, faults=faults, missed=str(error))
    if abs(measured.clock_offset_seconds) > CLOCK_SECONDS:
        faults.append(f"its clock differs by {measured.clock_offset_seconds:+.1f} s from that of the other nodes")
    return NodeReport(**found, **vars(measured), faults=faults)
