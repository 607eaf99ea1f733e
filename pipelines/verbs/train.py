"""Trains the phases of a recipe; writes metrics.jsonl, drawings/, checkpoints/ and weights/ to RUN/phases/PHASE.

Run the same command again to resume. Under torchrun or srun, this process is one of their ranks; otherwise --ranks N
starts N ranks on this machine.
"""

import argparse
import os
from typing import TYPE_CHECKING

from pipelines.recipe_arguments import add_recipe_arguments, recipe_of
from pipelines.text_arguments import whole_number

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.recipe import Recipe
    from ufork.parallel.rank_environment import RankEnvironment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, the number of ranks, and the phase to train."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--ranks",
        type=whole_number,
        metavar="N",
        help="number of ranks to start on this machine (default: as many as a forked layout has, otherwise 1)",
    )
    parser.add_argument(
        "--trace",
        action="store_true",
        help="write a trace of one step of each phase: trace.json (for Perfetto), pipeline.png, bubble.json",
    )
    parser.add_argument("--phase", metavar="NAME", help="train only this phase, from the weights of the one before it")


def failure_folder(arguments: argparse.Namespace) -> "Path | None":
    """Returns where failures are recorded without Slurm; None if the recipe cannot be read, or there is no run."""
    from ufork.errors import ConfigError

    try:
        run = recipe_of(arguments).run_folder
    except ConfigError:
        return None
    return run.failures if run.path.is_dir() else None


def run(arguments: argparse.Namespace) -> None:
    """Trains the recipe's phases.

    Raises:
        UforkError: a value, shard, tokenizer or folder is at fault, losses are not finite, or a rank failed.
    """
    from ufork.errors import ConfigError

    recipe = recipe_of(arguments)
    if arguments.ranks is not None and arguments.ranks < 1:
        raise ConfigError(f"--ranks {arguments.ranks}: at least one rank trains")

    phases = _phases_to_train(recipe, arguments.phase)

    from pipelines.check_recipe import check_recipe
    from pipelines.launch.ranks import joined_environment, run_ranks
    from ufork.parallel.layout import num_ranks_of

    num_ranks = arguments.ranks or num_ranks_of(recipe.layout)
    rank_env = joined_environment(os.environ, num_ranks)
    check_recipe(recipe, rank_env.world_size if rank_env else num_ranks or 1)
    _require_run(recipe)
    run_ranks(_train_on_rank, num_ranks, recipe, phases, arguments.trace)


def _require_run(recipe: "Recipe") -> None:
    from ufork.errors import ConfigError

    folder = recipe.run_folder.path
    if not folder.is_dir():
        raise ConfigError(
            f"run.folder={recipe.run.folder}, run.name={recipe.run.name}: there is no folder {folder.absolute()}, which"
            " has the tokenizers of the run; a relative run.folder starts at the current folder. For a new run, `ufork"
            f" tokenizer` makes them"
        )


def _phases_to_train(recipe: "Recipe", only: str | None) -> list[str]:
    from ufork.errors import ConfigError

    names = list(recipe.phases)
    if not names:
        raise ConfigError("phases: the recipe has none, so there is nothing to train; name at least one")
    if only is not None and only not in names:
        raise ConfigError(f"--phase {only}: the recipe's phases are {', '.join(names)}")
    return names if only is None else [only]


def _train_on_rank(rank_env: "RankEnvironment", recipe: "Recipe", phases: list[str], trace: bool) -> None:
    """Trains on one rank. The heavy imports are here, so that the process that starts the ranks does not need them."""
    from pipelines.training import train_on_rank

    train_on_rank(rank_env, recipe, phases, trace=trace)
