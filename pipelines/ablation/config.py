"""A suite: the YAML file that declares which recipes to compare, and with which seeds."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from pipelines.recipe import Name
from ufork.config import Config

SHARED_SECTIONS = ("run", "prepare", "vision", "text", "demo")
"""Sections of a recipe that are the same for all arms of a suite: all read the same shards and tokenizers."""

Values = dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Any]
"""New values by the dotted keys of a recipe, such as model.trunk_layers."""
Tolerance = Annotated[float, Field(ge=0, le=100)]


class Matched(Config):
    """What must be equal between arms: the largest relative difference that is allowed, or null to allow any."""

    active_parameters: Tolerance | None = None
    """Of the parameters that a sample of a task runs through, between the arms that have the task."""
    total_parameters: Tolerance | None = None
    """Of the parameters of the whole model."""
    training_flops: Tolerance | None = None
    """Of the operations that training spends on a task, between the arms that have the task."""


class SuiteConfig(Config):
    """Arms that differ in declared values of one recipe, each trained and evaluated once per seed."""

    name: Name
    """Name of the suite's folder inside `run.folder` of the recipe."""
    recipe: str
    """Path of the recipe that the arms start from, relative to the suite's file."""
    values: Values = {}
    """Values of all arms."""
    arms: dict[Name, Values] = Field(min_length=1, max_length=256)
    """Values of each arm by its name; {} for an arm that is the recipe itself."""
    seeds: tuple[Annotated[int, Field(ge=0, le=2**62)], ...] = Field(default=(0, 1, 2), min_length=1, max_length=256)
    """Values of `run.seed`, which decides initial weights and the order of samples; data has the seed of the recipe."""
    matched: Matched = Matched()
    baselines: tuple[Name, ...] = ()
    """Arms that all others are compared with."""
    ranks: PositiveInt = 1
    """Ranks that train an arm."""
    parallel: PositiveInt = 1
    """Arms that run at the same time on a machine, or as tasks of a Slurm array."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: each seed once, found {self.seeds}")
        if unknown := [name for name in self.baselines if name not in self.arms]:
            raise ValueError(f"baselines: {', '.join(unknown)} is no arm; the arms are {', '.join(self.arms)}")
        for arm, values in self.arms.items():
            if shared := _shared_keys(values):
                raise ValueError(
                    f"arms.{arm}: {', '.join(shared)}: all arms read the same shards and tokenizers; set it in `values`"
                )
        return self


def _shared_keys(values: Mapping[str, Any]) -> list[str]:
    return [key for key in values if key.partition(".")[0] in SHARED_SECTIONS]
