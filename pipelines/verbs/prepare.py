"""Makes RUN/shards/SOURCE/SPLIT with their manifests and attribution; finished sources are kept as they are."""

import argparse

from pipelines.recipe_arguments import add_recipe_arguments as add_arguments
from pipelines.recipe_arguments import recipe_of

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> None:
    """Makes the shards of the recipe's sources.

    Raises:
        UforkError: as `data_prep.demo.prepare.prepare`.
    """
    from data_prep.demo.prepare import prepare

    recipe = recipe_of(arguments)
    recipe.run_folder.record(recipe.model_dump(mode="json"), ("prepare",))
    prepare(recipe.prepare, recipe.run_folder.shards, recipe.run.seed)
