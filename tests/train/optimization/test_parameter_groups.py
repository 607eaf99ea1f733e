"""Groups partition the parameters, and a phase trains the groups that it names."""

import pytest

from tests.tiny import tiny_config, tiny_model
from ufork.train.config import TrainConfig
from ufork.train.optimization.parameter_groups import freeze_except, group_of
from ufork.train.stage_module import StageModule
from ufork.train.trainable import PREFIXES, stage_trains
from ufork.vocabulary import Task


def loss_of(loss_weighting="fixed", **changes):
    config = tiny_config(**{"tie_word_embeddings": False} | changes)
    return StageModule(tiny_model(config), TrainConfig(loss_weighting=loss_weighting))


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"loss_weighting": "uncertainty"}, set()),
        ({"tie_word_embeddings": True}, {"text_head", "loss_weights"}),
        ({"trunk_layers": 0}, {"trunk", "loss_weights"}),
        ({"separate_first_layers": 1}, {"loss_weights"}),
        ({"tasks": (Task.UNDERSTANDING,)}, {"generation", "rq_head", "loss_weights"}),
        ({"tasks": (Task.GENERATION,)}, {"understanding", "text_head", "loss_weights"}),
    ],
)
def test_every_parameter_is_in_exactly_one_group(changes, absent):
    groups = {
        group_of(name, tied=changes.get("tie_word_embeddings", False))
        for name, _ in loss_of(**changes).named_parameters()
    }  # group_of asserts that there is exactly one
    assert groups == PREFIXES.keys() - absent


@pytest.mark.parametrize("task", Task)
def test_separate_first_layers_train_with_the_branch_of_their_task(task):
    loss = loss_of(separate_first_layers=1)
    freeze_except(loss, (task,))
    trained = {name.removeprefix("model.") for name, parameter in loss.named_parameters() if parameter.requires_grad}
    first = {name for name, _ in loss.model.named_parameters() if name.startswith(f"trunk.first_stacks.{task}.")}
    assert first and first == {name for name in trained if name.startswith("trunk.")}


PHASES = {
    "1.0": ("projector", "rq_head"),
    "4.0": ("generation", "rq_head"),
    "5.0": ("understanding",),
    **{group: (group,) for group in PREFIXES},
}


@pytest.mark.parametrize("trainable", PHASES.values(), ids=PHASES)
def test_a_phase_trains_the_groups_it_names_and_freezes_the_others(trainable):
    loss = loss_of(loss_weighting="uncertainty")
    freeze_except(loss, trainable)
    trained = {name for name, parameter in loss.named_parameters() if parameter.requires_grad}
    expected = {
        name
        for name, _ in loss.named_parameters()
        if name.removeprefix("model.").startswith(tuple(prefix for group in trainable for prefix in PREFIXES[group]))
    }
    assert trained == expected != set()


def test_all_trains_all_also_after_a_phase_that_froze_some():
    loss = loss_of()
    freeze_except(loss, ("projector",))
    freeze_except(loss, "all")
    assert all(parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.parametrize(
    ("trainable", "stages"),
    [
        ("all", {"trunk", "understanding", "generation"}),
        (("token_embedding",), {"trunk"}),
        (("rq_head", "text_head"), {"understanding", "generation"}),
        (("generation",), {"generation"}),
    ],
)
def test_stages_that_train_are_known_from_the_groups(trainable, stages):
    assert {stage for stage in ("trunk", "understanding", "generation") if stage_trains(stage, trainable)} == stages
