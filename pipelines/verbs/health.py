"""Checks a node before it trains: its GPUs, its disks, and its connection to the job's other nodes.

The batch script runs it under srun, one process per node, and then lists the unfit nodes with --summarize, which fails
if nodes could not exchange data and none of them can be said to be at fault.
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
    from ufork.parallel.rank_environment import RankEnvironment

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
        help="time limit of one exchange of data with other nodes (%(default)g)",
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
        PeerError: with --summarize, nodes could not exchange data, and nothing shows which of them is at fault.
    """
    from pipelines.cluster.node_health import read_reports, unfit_nodes
    from pipelines.launch.ranks import joined_environment
    from ufork.files import make_folder

    nodes = arguments.nodes.split(",")
    if arguments.summarize:
        reports = read_reports(arguments.folder, nodes)
        for report in reports:
            log.info("node %s: %s", report.node, report.describe())
        print(",".join(unfit_nodes(reports)))
        return
    make_folder(arguments.folder)
    rank_env = joined_environment(os.environ, None)
    report = _examine_alone(arguments, _node_name(nodes, rank_env))
    if rank_env and rank_env.world_size > 1:
        # Written before anything can hang that other nodes take part in: their fault must not become this node's.
        _write(arguments.folder, report.model_copy(update={"missed": "did not finish the exchange of data"}))
        report = _examine_together(arguments, nodes, rank_env, report)
    _write(arguments.folder, report)


def _write(folder: Path, report: "NodeReport") -> None:
    from ufork.files import write_whole

    write_whole(folder / f"{report.node}.json", report.model_dump_json(indent=1) + "\n")


def _node_name(nodes: list[str], rank_env: "RankEnvironment | None") -> str:
    """Returns Slurm's name of this node; in a container, the host name may be another."""
    if name := os.environ.get("SLURMD_NODENAME"):
        return name
    return nodes[rank_env.rank] if rank_env and rank_env.world_size == len(nodes) else socket.gethostname()


def _examine_alone(arguments: argparse.Namespace, node: str) -> "NodeReport":
    from pipelines.cluster.node_health import NodeReport, check_gpus, free_gb

    gpus = check_gpus(arguments.gpus, os.environ)
    free, too_full = free_gb([arguments.folder, Path(tempfile.gettempdir())])
    return NodeReport(
        node=node,
        gpus=gpus.names,
        free_gb=free,
        faults=[*gpus.faults, *too_full],
        remarks=gpus.remarks,
    )


def _examine_together(
    arguments: argparse.Namespace, nodes: list[str], rank_env: "RankEnvironment", report: "NodeReport"
) -> "NodeReport":
    """Returns `report` with what the other nodes add to it."""
    from pipelines.cluster.exchange import exchange
    from pipelines.cluster.node_health import CLOCK_SECONDS
    from pipelines.cluster.rendezvous import rendezvous

    found = rendezvous(
        rank_env,
        nodes,
        lambda group: exchange(group, os.environ),
        fit=not report.faults,
        on_gpu=arguments.gpus > 0,
        timeout_seconds=arguments.timeout,
    )
    faults = [*report.faults, found.fault] if found.fault else list(report.faults)
    measured = {} if found.measured is None else found.measured.model_dump()
    if found.measured and abs(offset := found.measured.clock_offset_seconds) > CLOCK_SECONDS:
        faults.append(f"its clock differs by {offset:+.1f} s from that of the other nodes")
    others = {"faults": faults, "missed": found.missed, "unreached": list(found.unreached)}
    return report.model_copy(update=measured | others)
