"""Writes RUN/report.html, a page about a run that needs no other file and no network.

It can be written at any time: the page shows what the run has done so far, and names damaged files.
"""

import argparse
from pathlib import Path

from pipelines.terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or its recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="new value for a key of the recipe, such as run.name=mine"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the page and prints its path.

    Raises:
        UforkError: the recipe is at fault, the folder is not that of a run, or the page cannot be written.
    """
    from pipelines.recipe import read_recipe
    from ufork.report.run_report import write_report

    folder = arguments.run
    if not folder.is_dir():
        folder = read_recipe(folder, arguments.overrides).run_folder.path
    show(f"report: {write_report(folder)}")
