"""Scores a model's weights on held-out samples and prints the tables.

Writes RUN/evaluation.json, the cases and example pictures in RUN/evaluation/, and the detector that scored drawings in
RUN/detector/. After an interruption, the same command evaluates only the missing cases.
"""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.device_arguments import add_device_arguments, load_model, memory_errors
from pipelines.recipe_arguments import add_recipe_arguments, recipe_of
from pipelines.terminal import show

if TYPE_CHECKING:
    from pipelines.recipe import Recipe
    from ufork.eval.benchmark import Benchmark
    from ufork.vocabulary import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe and the weights."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--checkpoint", type=Path, help="folder of exported weights (default: those of the recipe's last phase)"
    )
    parser.add_argument(
        "--only-detector", action="store_true", help="only fit the detector that scores drawings; needs no weights"
    )
    add_device_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluates a trained model.

    Raises:
        UforkError: a value, the weights, a shard or a folder is at fault, or there is nothing to evaluate.
    """
    from ufork.errors import ConfigError

    recipe = recipe_of(arguments)
    if arguments.only_detector:
        benchmarks_of(recipe, recipe.model.tasks)
        return
    if not recipe.phases and not arguments.checkpoint:
        raise ConfigError("phases: the recipe has none, so there are no weights to evaluate; give --checkpoint")
    folder = recipe.run_folder
    checkpoint = arguments.checkpoint or folder.phase(list(recipe.phases)[-1]).weights
    if not _has_data(recipe):
        raise ConfigError(
            f"{folder.path}: nothing to evaluate: no held-out samples; run `ufork prepare` for the demo's scenes"
            " (prepare.scenes), make shards with split=heldout in shards/NAME/heldout, or name source folders in"
            " evaluate.heldout.folders"
        )

    from ufork.eval.evaluate import evaluate

    with memory_errors("Lower evaluate.draw.batch_prompts or evaluate.answer.batch_questions"):
        model = load_model(checkpoint, arguments)
        folder.record(recipe.model_dump(mode="json"), ("evaluate",))
        evaluation = evaluate(
            model,
            benchmarks_of(recipe, model.tasks),
            recipe.evaluate,
            folder=folder.examples,
            checkpoint=str(checkpoint),
            weights_id=_weights_id(checkpoint) + ("" if model.precision == "fp32" else f" in {model.precision}"),
        )
    evaluation.save(folder.evaluation)
    show(evaluation.summary())


def benchmarks_of(recipe: "Recipe", tasks: Collection["Task"]) -> list["Benchmark"]:
    """Returns the benchmarks of a recipe whose data exists; fits the detector where scenes are to be drawn.

    Raises:
        UforkError: a benchmark's data is damaged.
    """
    from ufork.eval.heldout import HeldoutLoss
    from ufork.eval.scenes.benchmark import ScenesBenchmark
    from ufork.eval.scenes.detector_fit import detector_for
    from ufork.eval.scenes.emoji import EmojiBenchmark
    from ufork.vocabulary import Task

    config, folder = recipe.evaluate, recipe.run_folder
    benchmarks: list[Benchmark] = []
    if config.scenes and _has_scenes(recipe):
        scenes, detector = folder.shards / "scenes", None
        if Task.GENERATION in tasks:
            fitting = config.scenes.detector
            seed = recipe.run.seed if fitting.seed is None else fitting.seed
            detector = detector_for(scenes / "train", fitting, folder=folder.detector, seed=seed)
        benchmarks.append(ScenesBenchmark(scenes / "heldout", config.scenes, detector))
    if config.emoji and _has_emoji(recipe):
        benchmarks.append(EmojiBenchmark(folder.shards / "emoji" / "heldout", config.emoji))
    if config.heldout and (folders := _heldout_folders(recipe)):
        benchmarks.append(HeldoutLoss(folders, config.heldout))
    return benchmarks


def _has_data(recipe: "Recipe") -> bool:
    config = recipe.evaluate
    return bool(
        (config.scenes and _has_scenes(recipe))
        or (config.emoji and _has_emoji(recipe))
        or (config.heldout and _heldout_folders(recipe))
    )


def _has_scenes(recipe: "Recipe") -> bool:
    return bool(recipe.prepare.scenes) and _is_finished(recipe.run_folder.shards / "scenes" / "heldout")


def _has_emoji(recipe: "Recipe") -> bool:
    return bool(recipe.prepare.emoji) and _is_finished(recipe.run_folder.shards / "emoji" / "heldout")


def _is_finished(source: Path) -> bool:
    from ufork.data.shards.manifest import MANIFEST_FILE

    return (source / MANIFEST_FILE).is_file()


def _heldout_folders(recipe: "Recipe") -> list[Path]:
    """Returns the source folders that `evaluate.heldout.folders` names, or the finished ones of the held-out split."""
    folder = recipe.run_folder
    named = recipe.evaluate.heldout.folders if recipe.evaluate.heldout else None
    if named is not None:
        return [folder.path / name for name in named]
    for root in (folder.codes, folder.shards):
        if found := sorted(source for source in root.glob("*/heldout") if _is_finished(source)):
            return found
    return []


def _weights_id(checkpoint: Path) -> str:
    """Returns the checksums of all files of a weights folder: weights, config and tokenizers."""
    from ufork.files import checksum_of

    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return " ".join(f"{path.relative_to(checkpoint)}:{checksum_of(path)}" for path in files)
