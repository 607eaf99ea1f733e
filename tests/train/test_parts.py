"""Parts are a partition of the parameters, and a stage trains the parts it names."""

import pytest
from tiny import tiny_config, tiny_model

from ufork.errors import ConfigError
from ufork.train.config import TrainConfig
from ufork.train.loss_weighting import WeightedLoss
from ufork.train.parts import PREFIXES, freeze_except, part_of
from ufork.vocabulary import Task


def loss_of(loss_weighting="fixed", **changes):
    config = tiny_config(**{"tie_text_head": False} | changes)
    return WeightedLoss(tiny_model(config), TrainConfig(loss_weighting=loss_weighting))


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"loss_weighting": "uncertainty"}, set()),
        ({"tie_text_head": True}, {"text_head", "loss_weights"}),
        ({"trunk_layers": 0}, {"trunk", "loss_weights"}),
        ({"tasks": (Task.UNDERSTANDING,)}, {"generation", "rq_head", "loss_weights"}),
        ({"tasks": (Task.GENERATION,)}, {"understanding", "text_head", "loss_weights"}),
    ],
)
def test_every_parameter_is_in_exactly_one_part(changes, absent):
    parts = {part_of(name) for name, _ in loss_of(**changes).named_parameters()}  # part_of asserts that it is one
    assert parts == PREFIXES.keys() - absent


STAGES = {
    "1.0": ("projector", "rq_head"),
    "4.0": ("generation", "rq_head"),
    "5.0": ("understanding",),
    **{part: (part,) for part in PREFIXES},
}


@pytest.mark.parametrize("trainable", STAGES.values(), ids=STAGES)
def test_a_stage_trains_the_parts_it_names_and_freezes_the_others(trainable):
    loss = loss_of(loss_weighting="uncertainty")
    freeze_except(loss, trainable)
    trained = {name for name, parameter in loss.named_parameters() if parameter.requires_grad}
    expected = {
        name
        for name, _ in loss.named_parameters()
        if name.removeprefix("model.").startswith(tuple(prefix for part in trainable for prefix in PREFIXES[part]))
    }
    assert trained == expected != set()


def test_all_trains_all_also_after_a_stage_that_froze_some():
    loss = loss_of()
    freeze_except(loss, ("projector",))
    freeze_except(loss, "all")
    assert all(parameter.requires_grad for parameter in loss.parameters())


def test_a_stage_that_would_train_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"train\.trainable=\['rq_head'\]"):
        freeze_except(loss_of(tasks=(Task.UNDERSTANDING,)), ("rq_head",))
