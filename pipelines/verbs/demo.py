"""Runs a recipe from its data to its report, fitted to this machine, with one progress line.

Measures the machine for some seconds and takes the recipe's variant for it (section `demo` of the recipe), says how
long it will take and what to expect, and runs prepare, tokenizer text, fit and encode, train, evaluate and report.
Their output is in RUN/logs. After an interruption, the same command resumes, with the same variant.
"""

import argparse
import os
import sys
from pathlib import Path

from pipelines.text_arguments import whole_number

DEFAULT_RECIPE = Path(__file__).parents[1] / "recipes/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, its values, and what is otherwise chosen by the machine."""
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="RECIPE | KEY=VALUE",
        help="recipe (default: the demo's), and new values for its keys, such as run.name=mine",
    )
    parser.add_argument("--ranks", type=whole_number, metavar="N", help="number of ranks that train")
    parser.add_argument(
        "--machine", metavar="CLASS", help="class of machine in the recipe's demo.machines, instead of measuring"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the demo.

    Raises:
        UforkError: a value is at fault, or a verb failed, whose exit code the error has.
    """
    from pipelines.demo.run import Demo, Request
    from ufork.errors import ConfigError

    if arguments.ranks is not None and arguments.ranks < 1:
        raise ConfigError(f"--ranks {arguments.ranks}: at least one rank trains")
    overrides = tuple(word for word in arguments.arguments if "=" in word)
    paths = [Path(word) for word in arguments.arguments if "=" not in word]
    request = Request(
        path=_only(paths),
        overrides=overrides,
        ranks=arguments.ranks,
        machine_class=arguments.machine,
        program=program_name(),
    )
    demo = Demo(request, environment=os.environ, out=sys.stdout)
    print(demo.describe(demo.run()))


def program_name() -> str:
    """Returns how the user called `ufork`."""
    return sys.argv[0] if Path(sys.argv[0]).name == "ufork" else "ufork"


def _only(paths: list[Path]) -> Path:
    from ufork.errors import ConfigError

    if len(paths) > 1:
        raise ConfigError(f"{paths[1]}: expected one recipe, found a second after {paths[0]}; values are KEY=VALUE")
    return paths[0] if paths else DEFAULT_RECIPE
