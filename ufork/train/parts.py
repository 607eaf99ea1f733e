"""The parts of a model by name: what a stage of the recipe trains and what it leaves frozen.

The stage table of the release (spec, section 7) is written with these names in `pipelines/recipes/unifork`.
"""

import logging
from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from ufork.errors import ConfigError
from ufork.train.config import Part

log = logging.getLogger(__name__)

PREFIXES: dict[str, tuple[str, ...]] = {
    "token_embedding": ("trunk.token_embedding.",),
    "projector": ("trunk.projector.",),
    "trunk": ("trunk.stack.",),
    "understanding": ("branches.understanding.stack.", "branches.understanding.norm."),
    "generation": ("branches.generation.stack.", "branches.generation.norm."),
    "text_head": ("branches.understanding.head.",),
    "rq_head": ("branches.generation.head.",),
    "loss_weights": ("log_variances",),
}
"""Prefixes of the parameter names that make up each part."""
assert set(PREFIXES) == set(get_args(Part))


def part_of(parameter_name: str) -> str:
    """The one part that a parameter belongs to."""
    name = parameter_name.removeprefix("model.")
    parts = [part for part, prefixes in PREFIXES.items() if name.startswith(prefixes)]
    assert len(parts) == 1, f"{parameter_name} belongs to {parts or 'no part'}"
    return parts[0]


def freeze_except(model: nn.Module, trainable: Sequence[Part] | Literal["all"]) -> None:
    """Leaves only the parameters of `trainable` with gradients.

    Raises:
        ConfigError: nothing would train.
    """
    num_trainable = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable == "all" or part_of(name) in trainable)
        num_trainable += parameter.numel() * parameter.requires_grad
    if not num_trainable:
        raise ConfigError(
            f"train.trainable={list(trainable)}: the model has none of these parts, so nothing would train"
        )
    log.info(
        "training %.2fM of %.2fM parameters", num_trainable / 1e6, sum(p.numel() for p in model.parameters()) / 1e6
    )
