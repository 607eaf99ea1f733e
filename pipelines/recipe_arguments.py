"""The arguments of verbs that run on a recipe. Imports nothing heavy: help must come at once."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.recipe import Recipe


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe's path and its overrides."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="YAML file, as those in pipelines/recipes")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a value, as train.steps=200 does")


def recipe_of(arguments: argparse.Namespace) -> "Recipe":
    """The checked recipe that `arguments` name.

    Raises:
        ConfigError: as `pipelines.recipe.read_recipe`.
    """
    from pipelines.recipe import read_recipe

    return read_recipe(arguments.recipe, arguments.overrides)
