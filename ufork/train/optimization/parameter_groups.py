"""Assigns the parameters of a training module to groups, and freezes all but some groups."""

import logging

from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING
from ufork.train.stage_module import StageModule
from ufork.train.trainable import PREFIXES, Trainable, group_trains

log = logging.getLogger(__name__)


def group_of(parameter_name: str, *, tied: bool) -> str:
    """Returns the one group that a parameter is in; a tied text head is in the token embedding's."""
    name = parameter_name.removeprefix("model.")
    if tied and name == TIED_HEAD:
        name = TOKEN_EMBEDDING
    groups = [group for group, prefixes in PREFIXES.items() if name.startswith(prefixes)]
    assert len(groups) == 1, f"{parameter_name} is in {groups or 'no group'}"
    return groups[0]


def freeze_except(module: StageModule, trainable: Trainable) -> int:
    """Leaves only the parameters in `trainable` with gradients, and returns their number of elements."""
    num_trainable = 0
    for name, parameter in module.named_parameters():
        group = group_of(name, tied=module.model.config.tie_word_embeddings)
        parameter.requires_grad_(group_trains(group, trainable))
        num_trainable += parameter.numel() * parameter.requires_grad
    log.info(
        "training %.2fM of %.2fM parameters", num_trainable / 1e6, sum(p.numel() for p in module.parameters()) / 1e6
    )
    return num_trainable
