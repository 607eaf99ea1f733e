"""A recipe: the one YAML file that says everything about a run.

    YAML + dotted overrides -> each stage's sections laid over the shared ones -> `Recipe`, all of it checked

It only composes configs; each is declared beside the code that it configures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from data_prep.demo.prepare import PrepareConfig
from ufork.config import Config, merge_overrides, read_mapping
from ufork.data.config import DataConfig, TextConfig
from ufork.eval.config import EvaluateConfig
from ufork.model.config import ModelConfig
from ufork.parallel.config import LayoutConfig
from ufork.run_folder import RunFolder
from ufork.train.config import TrainConfig
from ufork.vision.config import VisionConfig

STAGE_SECTIONS = ("train", "data")
"""Sections that a stage may change for itself."""


class RunConfig(Config):
    """Where a run is kept, and its seed."""

    name: str = Field(pattern=r"^[\w][\w.-]*$")
    """The run's folder below `folder`."""
    folder: Path = Path("runs")
    """Folder of all runs."""
    seed: int = Field(default=0, ge=0)
    """Of everything random: shards, initial weights, the order of samples."""


class StageConfig(Config):
    """One stage of a recipe; it starts from the weights of the one before. What it leaves out is the recipe's."""

    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()


class Recipe(Config):
    """All of a run."""

    run: RunConfig
    prepare: PrepareConfig = PrepareConfig()
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    """What stages read, unless they say otherwise."""
    train: TrainConfig = TrainConfig()
    """How stages train, unless they say otherwise."""
    layout: LayoutConfig = LayoutConfig()
    """How the job's ranks are laid out, in all stages alike."""
    stages: dict[str, StageConfig] = {}
    """By name, in order."""
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def run_folder(self) -> RunFolder:
        """Where the run's files lie."""
        return RunFolder(self.run.folder / self.run.name)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads the recipe at `path`, merges `overrides` such as `train.steps=200`, and completes its stages.

    Raises:
        ConfigError: a file, key or value is at fault; the message names it.
    """
    mapping = merge_overrides(read_mapping(path), overrides)
    Recipe.from_mapping({**mapping, "stages": {}}, origin=str(path))  # tells a fault of a shared section once
    return Recipe.from_mapping(_with_complete_stages(mapping), origin=str(path))


def _with_complete_stages(mapping: dict[str, Any]) -> dict[str, Any]:
    stages = mapping.get("stages", {})
    if not isinstance(stages, dict):
        return mapping
    shared = {section: mapping[section] for section in STAGE_SECTIONS if section in mapping}
    return {**mapping, "stages": {name: _laid_over(shared, stage) for name, stage in stages.items()}}


def _laid_over(base: Any, top: Any) -> Any:
    """`top` with what `base` has besides; anything but a mapping replaces."""
    if top is None:  # an empty section in YAML
        return base
    if not isinstance(base, dict) or not isinstance(top, dict):
        return top
    return {**base, **{key: _laid_over(base.get(key), value) for key, value in top.items()}}
