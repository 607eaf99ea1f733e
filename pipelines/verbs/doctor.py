"""Prints one page about this machine: what it has, what is missing, what ufork does without it, and how to install it.

The exit code is 1 if something that ufork requires is missing or broken. On a busy machine this takes minutes; a check
that times out is marked "slow", which does not mean broken.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of the runs, and the form of the output."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER", help="folder of all runs (runs)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints the page.

    Raises:
        MachineError: something required is broken.
    """
    from pipelines.doctor.examine import CHECKS, examine
    from pipelines.doctor.page import as_values, render
    from pipelines.doctor.surroundings import Surroundings
    from ufork import __version__
    from ufork.errors import MachineError
    from ufork.parallel.nvidia_devices import uses_cuda

    has_gpu = uses_cuda(os.environ)
    around = Surroundings(
        environment=os.environ, folder=arguments.folder, home=Path(os.path.expanduser("~")), has_gpu=has_gpu
    )
    findings = examine(around, CHECKS)
    if arguments.json:
        print(json.dumps(as_values(findings), indent=1))
    else:
        title = f"ufork {__version__} on {platform.node()} ({platform.platform()})"
        print(render(findings, title=title, colour=sys.stdout.isatty()))
    broken = [finding.name for group in findings.values() for finding in group if finding.breaks]
    if broken:
        raise MachineError(f"required, but missing or broken: {', '.join(broken)}; the page says how to fix it")
