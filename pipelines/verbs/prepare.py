"""Makes the shards of the recipe's synthetic sources: RUN/shards/SOURCE/SPLIT. Finished sources are kept."""

import argparse

from pipelines.recipe_arguments import add_recipe_arguments as add_arguments
from pipelines.recipe_arguments import recipe_of

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> None:
    """Makes the shards of the sources in the recipe's section `prepare`.

    Raises:
        UforkError: as `data_prep.demo.prepare.prepare`.
    """
    from data_prep.demo.prepare import prepare

    recipe = recipe_of(arguments)
    recipe.run_folder.record(recipe.model_dump(mode="json"), ("prepare",))
    prepare(recipe.prepare, recipe.run_folder.shards, recipe.run.seed)
