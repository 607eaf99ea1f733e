"""Reads what a run has left in its folder and writes RUN/report.html, which needs no other file and no network."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or its recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, as run.name=mine")


def run(arguments: argparse.Namespace) -> None:
    """Writes the page and prints where it is.

    Raises:
        UforkError: the recipe is at fault, or the page cannot be written.
    """
    from pipelines.recipe import read_recipe
    from ufork.report.run_report import write_report

    folder = arguments.run
    if not folder.is_dir():
        folder = read_recipe(folder, arguments.overrides).run_folder.path
    print(f"report: {write_report(folder)}")
