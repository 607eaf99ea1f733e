"""Makes the text tokenizer and the image tokenizer of a run, and encodes its images.

text    trains a byte-level BPE on the shards' texts, or copies the tokenizer in text.folder or model.start
                                                                                        -> RUN/tokenizer/text
fit     fits the image tokenizer to the shards' images, or copies the one in vision.folder -> RUN/tokenizer/vision
encode  encodes the shards' images with the image tokenizer                             -> RUN/codes/SOURCE/SPLIT
"""

import argparse

from pipelines.recipe_arguments import add_recipe_arguments, recipe_of

SECTIONS = {"text": ("text",), "fit": ("vision",), "encode": ()}
"""Sections of the recipe that each action uses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the action and the recipe."""
    parser.add_argument("action", choices=SECTIONS, help="action, as described below")
    add_recipe_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Makes a tokenizer, or encodes the shards.

    Raises:
        UforkError: as the functions of `pipelines.tokenizers`.
    """
    recipe = recipe_of(arguments)
    recipe.run_folder.record(recipe.model_dump(mode="json"), SECTIONS[arguments.action])

    from pipelines.tokenizers import encode_all_shards, make_image_tokenizer, make_text_tokenizer

    actions = {"text": make_text_tokenizer, "fit": make_image_tokenizer, "encode": encode_all_shards}
    actions[arguments.action](recipe)
