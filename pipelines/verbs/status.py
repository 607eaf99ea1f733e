"""Where a run is: its state, phase and step, speed, restarts, last checkpoint, time left, and what was left out.

Read from the run's folder, and from Slurm where there is one. With --ended, the report of a job that has just ended.
"""

import argparse
import json
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run, and how it is told."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parser.add_argument("--ended", type=int, metavar="EXIT_CODE", help="of the job that has just ended: tells why")


def run(arguments: argparse.Namespace) -> None:
    """Prints the status.

    Raises:
        ConfigError: there is no such folder.
    """
    from pipelines.status.run_status import read_status
    from pipelines.status.status_page import as_values, render

    status = read_status(arguments.run, os.environ, ended=arguments.ended)
    print(json.dumps(as_values(status), indent=1) if arguments.json else render(status))
