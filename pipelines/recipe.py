"""A recipe: the one YAML file that describes a run.

    YAML + dotted overrides -> each phase's sections completed from the shared ones -> `Recipe`, every value checked

A recipe only composes configs; each is declared beside the code that it configures.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from data_prep.demo.prepare import PrepareConfig
from pipelines.demo.config import DemoConfig
from ufork.config import Config, merge_overrides, read_mapping
from ufork.data.config import DataConfig, TextConfig
from ufork.eval.config import EvaluateConfig
from ufork.model.config import ModelConfig
from ufork.parallel.config import LayoutConfig
from ufork.run_folder import RunFolder
from ufork.train.config import TrainConfig
from ufork.vision.config import VisionConfig

MAX_FOLDER_BYTES = 2048
"""Half of what Linux allows for a path; the rest is for the names below `run.folder`."""
MAX_PHASES = 100
PHASE_SECTIONS = ("train", "data")
"""Sections that a phase may override."""


def _fits_a_folder_name(name: str) -> str:
    if len(name.encode()) > 200:
        raise ValueError("a name has at most 200 bytes")
    return name


Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100), AfterValidator(_fits_a_folder_name)]
"""A name that is also a folder's: letters, digits and _ . - only."""


class RunConfig(Config):
    """Folder and seed of a run."""

    name: Name
    """Name of the run's folder inside `folder`."""
    folder: Path = Path("runs")
    """Folder of all runs."""
    seed: int = Field(default=0, ge=0, le=2**62)
    """Seed of everything random: shards, initial weights, the order of samples. Those of phases are counted up from it,
    and fit into 64 bits."""

    @field_validator("folder")
    @classmethod
    def _fits_a_path(cls, folder: Path) -> Path:
        if len(os.fsencode(folder)) > MAX_FOLDER_BYTES or any(len(os.fsencode(part)) > 255 for part in folder.parts):
            raise ValueError(f"a folder's path has at most {MAX_FOLDER_BYTES} bytes, and 255 between two slashes")
        return folder


class RecipeModelConfig(ModelConfig):
    """The model of a run, and what its first phase starts from."""

    # omitted if there is none, so that configs stored before this key existed stay the same
    start: str | None = Field(default=None, exclude_if=lambda folder: folder is None)
    """Folder of weights that the first phase starts from, of `ufork convert` or of another run's phase; random weights
    if there is none."""

    @property
    def sizes(self) -> ModelConfig:
        """The model without what it starts from."""
        return ModelConfig(**self.model_dump(exclude={"start"}))


class PhaseConfig(Config):
    """One phase of a recipe; it starts from the weights of the phase before. Missing values are the recipe's."""

    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()


class Recipe(Config):
    """Everything about a run."""

    run: RunConfig
    prepare: PrepareConfig = PrepareConfig()
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    model: RecipeModelConfig = RecipeModelConfig()
    data: DataConfig = DataConfig()
    """Data of the phases, which may each override it."""
    train: TrainConfig = TrainConfig()
    """Training of the phases, which may each override it."""
    layout: LayoutConfig = LayoutConfig()
    """Layout of the job's ranks, the same in all phases."""
    phases: dict[Name, PhaseConfig] = Field(default={}, max_length=MAX_PHASES)
    """Phases by name, in the order in which they train."""
    evaluate: EvaluateConfig = EvaluateConfig()
    demo: DemoConfig = DemoConfig()
    """What `ufork demo` changes for a class of machine."""

    @property
    def run_folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.run.folder / self.run.name)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads the recipe at `path`, merges `overrides` such as `train.steps=200`, and completes its phases.

    Raises:
        ConfigError: a file, key or value is at fault; the message names it.
    """
    mapping = merge_overrides(read_mapping(path), overrides)
    recipe = _checked(mapping, origin=str(path))
    for machine in recipe.demo.machines:
        _checked(merge_overrides(mapping, machine.values), origin=f"{path}: demo.machines, values of {machine.name}")
    return recipe


def _checked(mapping: dict[str, Any], *, origin: str) -> Recipe:
    Recipe.from_mapping({**mapping, "phases": {}}, origin=origin)  # reports a fault of a shared section once
    return Recipe.from_mapping(_with_complete_phases(mapping), origin=origin)


def _with_complete_phases(mapping: dict[str, Any]) -> dict[str, Any]:
    phases = mapping.get("phases", {})
    if not isinstance(phases, dict):
        return mapping
    shared = {section: mapping[section] for section in PHASE_SECTIONS if section in mapping}
    return {**mapping, "phases": {name: _laid_over(shared, phase) for name, phase in phases.items()}}


def _laid_over(base: Any, top: Any) -> Any:
    """Returns `top` completed from `base`, mapping by mapping; any other value of `top` replaces the one of `base`."""
    if top is None:  # an empty section in YAML
        return base
    if not isinstance(base, dict) or not isinstance(top, dict):
        return top
    return {**base, **{key: _laid_over(base.get(key), value) for key, value in top.items()}}
