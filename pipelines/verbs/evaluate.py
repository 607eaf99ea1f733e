"""Scores the weights of the recipe's last phase on the held-out questions and prompts, and prints the table.

Leaves RUN/evaluation.json, its example pictures, and the detector that judged the drawings.
"""

import argparse
from pathlib import Path

from pipelines.recipe_arguments import add_recipe_arguments, recipe_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, and other weights than its own."""
    add_recipe_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, help="weights; those of the recipe's last phase unless given")


def run(arguments: argparse.Namespace) -> None:
    """Evaluates a trained model.

    Raises:
        UforkError: a value, the weights, a shard or a folder is at fault.
    """
    from ufork.errors import ConfigError

    recipe = recipe_of(arguments)
    if recipe.prepare.scenes is None:
        raise ConfigError("prepare.scenes: null, but the skills are measured on scenes; give the section")
    if not recipe.phases and not arguments.checkpoint:
        raise ConfigError("phases: the recipe has none, so there are no weights to evaluate; give --checkpoint")
    folder = recipe.run_folder
    checkpoint = arguments.checkpoint or folder.phase(list(recipe.phases)[-1]).weights

    from ufork.eval.evaluate import evaluate
    from ufork.eval.scenes.detector_fit import detector_for
    from ufork.infer.model import TrainedModel

    folder.record(recipe.model_dump(mode="json"), ("evaluate",))
    model = TrainedModel.load(checkpoint)
    scenes, emoji = folder.shards / "scenes", folder.shards / "emoji"
    detector = detector_for(scenes / "train", recipe.evaluate.detector, folder=folder.detector, seed=recipe.run.seed)
    evaluation = evaluate(
        model,
        recipe.evaluate,
        scenes / "heldout",
        detector,
        examples_folder=folder.examples,
        emoji_folder=emoji / "heldout" if recipe.prepare.emoji else None,
    )
    evaluation.save(folder.evaluation)
    print(evaluation.summary())
