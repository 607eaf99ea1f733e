"""The groups of parameters that a phase may train, by name: pure, importable without torch.

The phases of the release (arXiv 2506.17202, table 1) are written with these names in
`pipelines/recipes/unifork_0.5b.yaml`.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from ufork.errors import ConfigError
from ufork.model.config import ModelConfig
from ufork.train.config import ParameterGroup, TrainConfig
from ufork.vocabulary import Task

Trainable = Sequence[ParameterGroup] | Literal["all"]

PREFIXES: dict[str, tuple[str, ...]] = {
    "token_embedding": ("trunk.token_embedding.",),
    "projector": ("trunk.projector.",),
    "trunk": ("trunk.stack.",),
    "understanding": (
        "branches.understanding.stack.",
        "branches.understanding.norm.",
        "trunk.first_stacks.understanding.",
    ),
    "generation": ("branches.generation.stack.", "branches.generation.norm.", "trunk.first_stacks.generation."),
    "text_head": ("branches.understanding.head.",),
    "rq_head": ("branches.generation.head.",),
    "loss_weights": ("losses.",),
}
"""Prefixes of the names of each group's parameters."""
assert set(PREFIXES) == set(get_args(ParameterGroup))

TASK_OF_GROUP = {
    "understanding": Task.UNDERSTANDING,
    "text_head": Task.UNDERSTANDING,
    "generation": Task.GENERATION,
    "rq_head": Task.GENERATION,
}
"""Tasks of the groups that one task alone trains."""


def group_trains(group: str, trainable: Trainable) -> bool:
    """Returns whether a group is trained."""
    return trainable == "all" or group in trainable


def stage_trains(stage: str, trainable: Trainable) -> bool:
    """Returns whether anything in a stage (`trunk`, `understanding` or `generation`) is trained."""
    prefixes = (f"{stage}.", f"branches.{stage}.")
    groups = [group for group in PREFIXES if PREFIXES[group][0].startswith(prefixes)]
    return trainable == "all" or any(group in trainable for group in groups)


def require_trainable(config: TrainConfig, model: ModelConfig) -> None:
    """Checks that every group that is named exists, and that the phase's sequences train one of them.

    Raises:
        ConfigError: a group is absent from the model, or nothing would train.
    """
    if config.trainable == "all":
        return
    absent = _reasons_of_absence(config, model)
    for group in config.trainable:
        if group in absent:
            raise ConfigError(f"train.trainable: the model has no {group}, since {absent[group]}; leave it out")
    tasks = config.global_batch_size.by_task
    if not any(TASK_OF_GROUP.get(group) in (None, *tasks) for group in config.trainable):
        raise ConfigError(
            f"train.trainable={list(config.trainable)}: nothing would train, since train.global_batch_size has"
            f" sequences of {', '.join(tasks)} only; name a group that they pass"
        )


def _reasons_of_absence(config: TrainConfig, model: ModelConfig) -> dict[str, str]:
    """Returns why groups are absent from the model, by group."""
    absent = {group: f"model.tasks has no {task}" for group, task in TASK_OF_GROUP.items() if task not in model.tasks}
    if model.trunk_layers == 0:
        absent["trunk"] = "model.trunk_layers is 0"
    if model.tie_word_embeddings:
        absent["text_head"] = "model.tie_word_embeddings makes it the token_embedding"
    if config.loss_weighting != "uncertainty":
        absent["loss_weights"] = f"train.loss_weighting is {config.loss_weighting}"
    return absent
