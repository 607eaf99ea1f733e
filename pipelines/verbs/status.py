"""Shows a run's state, phase, step, speed, restarts, last checkpoint, time left and skipped samples.

Reads the run's folder, and queries Slurm if available. After a failure, shows its class, the evidence (an error message
or a line of a log), and what to do.
"""

import argparse
import json
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run, and the form of the output."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--json", action="store_true", help="print the status as JSON")
    parser.add_argument(
        "--ended", type=int, metavar="EXIT_CODE", help="exit code of the job that has just ended; shows why it ended"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the status.

    Raises:
        ConfigError: there is no such folder.
    """
    from pipelines.status.run_status import read_status
    from pipelines.status.status_page import as_values, render

    status = read_status(arguments.run, os.environ, ended=arguments.ended)
    print(json.dumps(as_values(status), indent=1) if arguments.json else render(status))
