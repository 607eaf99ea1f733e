"""A suite with its arms resolved: every recipe that it trains, checked before anything runs.

suite file -> SuiteConfig; its recipe + values + arm's values -> resolved recipe per arm -> a Trial per arm and seed

FOLDER = run.folder of the recipe / name of the suite
FOLDER/data         run folder whose shards, codes and tokenizers all trials read
FOLDER/ARM-seedN    run folder of a trial
FOLDER/results      result files, tables and figures, unless another folder is given
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.ablation.config import SuiteConfig
from pipelines.check_recipe import check_recipe
from pipelines.demo.config import DemoConfig
from pipelines.recipe import Recipe, read_recipe
from ufork.analysis.ablation.trial_result import trial_name
from ufork.config import dotted_values
from ufork.errors import ConfigError
from ufork.strict_yaml import load_yaml

DATA_RUN = "data"
"""Name of the run that the trials read their data from."""
DETECTOR_SEED = "evaluate.scenes.detector.seed"
UNCOMPARED = ("demo", "run.folder", "run.name")
"""Sections and keys of a recipe that do not decide a result."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One arm with one seed."""

    arm: str
    seed: int
    values: Mapping[str, Any]
    """Dotted keys and values by which the recipe differs from the suite's."""
    recipe: Recipe

    @property
    def name(self) -> str:
        """Name of the run's folder and of the result file."""
        return trial_name(self.arm, self.seed)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite whose recipes are valid."""

    config: SuiteConfig
    data: Recipe
    """Recipe of the run that makes shards and tokenizers."""
    trials: Sequence[Trial]
    """Arm by arm, seed by seed."""

    @property
    def folder(self) -> Path:
        """Folder of all run folders."""
        return self.data.run.folder

    @property
    def results(self) -> Path:
        """Default folder of the result files."""
        return self.folder / "results"

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Recipe of each arm, with one of the seeds."""
        return {trial.arm: trial.recipe for trial in self.trials}


def read_suite(path: Path, overrides: Sequence[str] = ()) -> Suite:
    """Reads the suite at `path` and resolves its arms.

    Args:
        path: of the YAML file.
        overrides: new values for the recipe of all arms, in the form of the command line; those of arms come after.

    Raises:
        ConfigError: a file, key or value is at fault, or an arm cannot train; names the arm.
    """
    config = SuiteConfig.from_yaml(path)
    recipe_path = path.parent / config.recipe
    common = [*as_overrides(config.values), *overrides]
    base = read_recipe(recipe_path, common)
    folder = as_overrides({"run.folder": str(base.run.folder / config.name), "run.name": DATA_RUN})
    if base.evaluate.scenes and base.evaluate.scenes.detector.seed is None:
        common.append(f"{DETECTOR_SEED}={base.run.seed}")  # one detector scores the drawings of all arms
    trials = []
    for arm, values in config.arms.items():
        recipe = _arm_recipe(arm, recipe_path, [*common, *folder, *as_overrides(values)], ranks=config.ranks)
        differing = {**config.values, **as_values(overrides), **values}
        for seed in config.seeds:
            run = recipe.run.model_copy(update={"seed": seed, "name": trial_name(arm, seed)})
            trial = recipe.model_copy(update={"run": run, "demo": DemoConfig()})
            trials.append(Trial(arm=arm, seed=seed, values=differing, recipe=trial))
    data = read_recipe(recipe_path, [*common, *folder]).model_copy(update={"demo": DemoConfig()})
    return Suite(config=config, data=data, trials=trials)


def _arm_recipe(arm: str, path: Path, overrides: Sequence[str], *, ranks: int) -> Recipe:
    try:
        recipe = read_recipe(path, overrides)
        check_recipe(recipe, ranks)
    except ConfigError as error:
        raise ConfigError(f"arm {arm}: {error}") from None
    for name, phase in recipe.phases.items():
        if phase.train.limit_seconds is not None:
            raise ConfigError(
                f"arm {arm}: phases.{name}.train.limit_seconds={phase.train.limit_seconds:g}: with a time limit, arms"
                " take different numbers of steps; set it to null in the suite's `values`, and train.steps to a number"
            )
    return recipe


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Returns values by dotted keys in the form of the command line."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def as_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns overrides of the command line, which a recipe was read with, as values by their dotted keys."""
    return {key: load_yaml(text) for key, _, text in (override.partition("=") for override in overrides)}


def recipe_differences(stored: Mapping[str, Any], recipe: Recipe, *, origin: str) -> list[str]:
    """Returns what differs between a stored recipe and `recipe`, as lines of text; empty if both give one result.

    Keys that ufork did not have when the recipe was stored count with their defaults.

    Args:
        stored: resolved recipe as JSON values.
        recipe: the recipe as it is now.
        origin: where `stored` comes from, for the message.

    Raises:
        ConfigError: `stored` is no recipe any more.
    """
    recipes = (Recipe.from_mapping(dict(stored), origin=origin), recipe)
    before, now = (dotted_values(each.model_dump(mode="json")) for each in recipes)
    keys = [key for key in before | now if not key.startswith(UNCOMPARED)]
    missing = "absent"
    return [
        f"{key} was {before.get(key, missing)!r}, is {now.get(key, missing)!r}"
        for key in keys
        if before.get(key, missing) != now.get(key, missing)
    ]
