"""The two tokenizers of a run.

text    trains a byte-level BPE on the shards' texts, or takes the recipe's folder -> RUN/tokenizer/text
fit     fits the image tokenizer to the shards' images                             -> RUN/tokenizer/vision
encode  encodes the shards' images with it                                         -> RUN/codes/SOURCE/SPLIT
"""

import argparse

from pipelines.recipe_arguments import add_recipe_arguments, recipe_of

SECTIONS = {"text": ("text",), "fit": ("vision",), "encode": ()}
"""What each action uses of the recipe."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what to make, and the recipe."""
    parser.add_argument("action", choices=SECTIONS, help="as told below")
    add_recipe_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Makes a tokenizer or encodes the shards.

    Raises:
        UforkError: a value, shard or folder is at fault.
    """
    recipe = recipe_of(arguments)
    recipe.run_folder.record(recipe.model_dump(mode="json"), SECTIONS[arguments.action])

    from pipelines.tokenizers import encode_all_shards, fit_image_tokenizer, make_text_tokenizer

    actions = {"text": make_text_tokenizer, "fit": fit_image_tokenizer, "encode": encode_all_shards}
    actions[arguments.action](recipe)
