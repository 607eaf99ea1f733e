"""One page on this machine: what is here, what ufork uses in the lack of it, and how to get it.

Exit code 1 when something that ufork cannot do without is broken.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where runs are kept, and how the page is written."""
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="where runs are kept; runs/")
    parser.add_argument("--json", action="store_true", help="the same for programs")


def run(arguments: argparse.Namespace) -> None:
    """Prints the page.

    Raises:
        MachineError: something required is broken.
    """
    from pipelines.doctor.examine import CHECKS, examine
    from pipelines.doctor.finding import Surroundings
    from pipelines.doctor.page import as_values, render
    from pipelines.launch.ranks import has_cuda_device
    from ufork import __version__
    from ufork.errors import MachineError

    around = Surroundings(environment=os.environ, folder=arguments.folder, home=Path.home(), has_gpu=has_cuda_device())
    findings = examine(around, CHECKS)
    if arguments.json:
        print(json.dumps(as_values(findings), indent=1))
    else:
        title = f"ufork {__version__} on {platform.node()} ({platform.platform()})"
        print(render(findings, title=title, colour=sys.stdout.isatty()))
    broken = [finding.name for group in findings.values() for finding in group if finding.breaks]
    if broken:
        raise MachineError(f"required, and absent or broken: {', '.join(broken)}; the page tells how to mend it")
