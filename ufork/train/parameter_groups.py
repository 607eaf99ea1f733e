"""The parts of a model by name: what a stage of the recipe trains and what it leaves frozen.

The stage table of the release (spec, section 7) is written with these names in `pipelines/recipes/unifork_0.5b.yaml`.
"""

import logging
from collections.abc import Sequence
from typing import Literal, get_args

from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING
from ufork.train.config import ParameterGroup
from ufork.train.stage_module import StageModule

log = logging.getLogger(__name__)

PREFIXES: dict[str, tuple[str, ...]] = {
    "token_embedding": ("trunk.token_embedding.",),
    "projector": ("trunk.projector.",),
    "trunk": ("trunk.stack.",),
    "understanding": ("branches.understanding.stack.", "branches.understanding.norm."),
    "generation": ("branches.generation.stack.", "branches.generation.norm."),
    "text_head": ("branches.understanding.head.",),
    "rq_head": ("branches.generation.head.",),
    "loss_weights": ("losses.",),
}
"""Prefixes of the parameter names that make up each part."""
assert set(PREFIXES) == set(get_args(ParameterGroup))


def part_of(parameter_name: str, *, tied: bool) -> str:
    """The one part that a parameter belongs to; a text head that is tied belongs to the token embedding."""
    name = parameter_name.removeprefix("model.")
    if tied and name == TIED_HEAD:
        name = TOKEN_EMBEDDING
    parts = [part for part, prefixes in PREFIXES.items() if name.startswith(prefixes)]
    assert len(parts) == 1, f"{parameter_name} belongs to {parts or 'no part'}"
    return parts[0]


def part_trains(part: str, trainable: Sequence[ParameterGroup] | Literal["all"]) -> bool:
    """Whether a part is to be trained."""
    return trainable == "all" or part in trainable


def stage_trains(stage: str, trainable: Sequence[ParameterGroup] | Literal["all"]) -> bool:
    """Whether anything of a stage, named as the model names its parts, is to be trained."""
    prefixes = (f"{stage}.", f"branches.{stage}.")
    parts = [part for part in PREFIXES if PREFIXES[part][0].startswith(prefixes)]
    return trainable == "all" or any(part in trainable for part in parts)


def freeze_except(module: StageModule, trainable: Sequence[ParameterGroup] | Literal["all"]) -> int:
    """Leaves only the parameters of `trainable` with gradients, and returns how many numbers those are."""
    num_trainable = 0
    for name, parameter in module.named_parameters():
        part = part_of(name, tied=module.model.config.tie_word_embeddings)
        parameter.requires_grad_(part_trains(part, trainable))
        num_trainable += parameter.numel() * parameter.requires_grad
    log.info(
        "training %.2fM of %.2fM parameters", num_trainable / 1e6, sum(p.numel() for p in module.parameters()) / 1e6
    )
    return num_trainable
