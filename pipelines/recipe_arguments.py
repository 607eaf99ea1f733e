"""The arguments of verbs that run on a recipe. Imports nothing heavy, so that help is quick."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.recipe import Recipe


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe's path and its overrides."""
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="recipe, a YAML file such as those in pipelines/recipes"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="new value for a key of the recipe, such as train.steps=200"
    )


def recipe_of(arguments: argparse.Namespace) -> "Recipe":
    """Returns the checked recipe that `arguments` name.

    Raises:
        ConfigError: as `pipelines.recipe.read_recipe`.
    """
    from pipelines.recipe import read_recipe

    return read_recipe(arguments.recipe, arguments.overrides)
