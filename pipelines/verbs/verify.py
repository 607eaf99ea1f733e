"""Runs a recipe as it is recorded in docs/verified.md, and says whether it came out as recorded.

The recipe runs as with `ufork demo`, in the run folder NAME-verify; only run.folder and run.name can be changed. Its
scores are compared with those of the recorded runs on the same class of machine. Exit code 0 means as recorded. The
result is also in RUN/verification.json. After an interruption, the same command resumes.
"""

import argparse
import os
import sys
from pathlib import Path

from pipelines.terminal import show
from pipelines.verbs.demo import program_name

CHANGEABLE = ("run.folder", "run.name")
"""Values that may differ from the recipe's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, the folder, and where the results are recorded."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe, such as those in pipelines/recipes")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help=f"new value for {' or '.join(CHANGEABLE)} of the recipe"
    )
    parser.add_argument(
        "--machine", metavar="CLASS", help="class of machine in the recipe's demo.machines, instead of measuring"
    )
    parser.add_argument("--recorded", type=Path, metavar="FILE", help="recorded results (default: those of ufork)")


def run(arguments: argparse.Namespace) -> None:
    """Runs and judges the recipe.

    Raises:
        UforkError: a value is at fault, nothing is recorded for this machine, a verb failed, or the run came out worse.
    """
    from pipelines.demo.run import Demo, Request
    from pipelines.recipe import read_recipe
    from pipelines.verification.recorded import RECORDED_FILE, Recorded
    from pipelines.verification.verify import require_recorded, verify
    from ufork.errors import ConfigError

    if others := [each for each in arguments.overrides if each.partition("=")[0] not in CHANGEABLE]:
        raise ConfigError(f"{others[0]}: a recipe is verified as it is; only {' and '.join(CHANGEABLE)} can be changed")
    recorded = Recorded.load(arguments.recorded or RECORDED_FILE).of(arguments.recipe)
    name = read_recipe(arguments.recipe, arguments.overrides).run.name
    request = Request(
        path=arguments.recipe,
        overrides=(f"run.name={name}-verify", *arguments.overrides),
        machine_class=arguments.machine,
        program=program_name(),
    )
    demo = Demo(request, environment=os.environ, out=sys.stdout)
    measured = require_recorded(recorded, demo.choice.machine_class)
    show(verify(demo, recorded, measured))
