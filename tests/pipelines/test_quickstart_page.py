"""docs/quickstart.md: its recipe is valid on two ranks, and the verbs accept its commands."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from pipelines.recipe import read_recipe
from ufork.model.config import Dimensions
from ufork.parallel.layout_checks import checked_layout

PAGE = (Path(__file__).parents[2] / "docs/quickstart.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "sh" for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture
def recipe_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        next(block for language, block in BLOCKS if language == "yaml" and block.startswith("run:")), encoding="utf-8"
    )
    return path


def test_the_recipe_is_valid_and_its_layout_fits_two_ranks(recipe_path):
    recipe = read_recipe(recipe_path)
    dimensions = Dimensions(
        vocab_size=recipe.text.vocab_size,
        codebook_size=recipe.vision.codebook_size,
        code_width=recipe.vision.code_width,
        codes_per_position=recipe.vision.codes_per_position,
    )
    assert list(recipe.phases) == ["joint", "generation"]
    for phase in recipe.phases.values():
        checked_layout(
            recipe.layout,
            num_ranks=2,
            global_batch_size=phase.train.global_batch_size.by_task,
            model=recipe.model,
            dimensions=dimensions,
            seq_len=phase.data.seq_len,
            num_lanes=phase.data.num_lanes,
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_verb_accepts_the_command(command, recipe_path):
    program, verb, *words = shlex.split(command)
    assert program == ".venv/bin/ufork"
    parser = argparse.ArgumentParser()
    importlib.import_module(f"pipelines.verbs.{verb}").add_arguments(parser)
    arguments = parser.parse_intermixed_args(words)
    if getattr(arguments, "recipe", None):
        known = str(arguments.recipe).startswith("pipelines/")
        read_recipe(arguments.recipe if known else recipe_path, arguments.overrides)
