"""Initial weights: from the seed and the name alone, with the distributions of the release."""

import pytest
import torch

from tests.tiny import DIMENSIONS, tiny_config
from ufork.model.config import RqHeadConfig
from ufork.model.initialization import initialize
from ufork.model.unifork import UniFork
from ufork.vocabulary import Task


def weights_of(seed=0, **changes):
    model = UniFork(tiny_config(**changes), DIMENSIONS)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    initialize(model, seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def under(weights, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def test_every_parameter_is_initialized_and_depends_on_the_seed():
    weights = weights_of()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    torch.rand(1)  # the global generator has no effect
    assert same(weights, weights_of())
    assert not torch.equal(weights_of(seed=1)["trunk.projector.first.weight"], weights["trunk.projector.first.weight"])


def test_no_two_parameters_draw_the_same_numbers():
    weights = weights_of(tasks=(Task.UNDERSTANDING,), trunk_layers=3, tie_word_embeddings=False)
    drawn = [tensor.flatten()[:8] / tensor.std() for tensor in weights.values() if tensor.dim() > 1]
    numbers = torch.stack(drawn)
    distances = torch.cdist(numbers, numbers).fill_diagonal_(torch.inf)
    assert distances.min() > 0.1


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"tasks": (Task.UNDERSTANDING,)}, ["trunk.", "branches.understanding."]),
        ({"tasks": (Task.GENERATION,)}, ["trunk.", "branches.generation.head."]),
        ({"generation_layers": 3}, ["trunk.", "branches.understanding.", "branches.generation.head."]),
        ({"understanding_layers": 0}, ["trunk.", "branches.generation.head."]),
        ({"separate_first_layers": 1}, ["trunk.stack.", "trunk.projector.", "branches."]),
    ],
)
def test_weights_do_not_depend_on_the_other_modules_built(changes, kept):
    whole, other = weights_of(), weights_of(**changes)
    for prefix in kept:
        assert same(under(whole, prefix), under(other, prefix)), prefix


@pytest.mark.parametrize(("layers", "copied"), [(1, True), (2, False)])
def test_generation_starts_as_a_copy_of_an_equally_deep_understanding(layers, copied):
    weights = weights_of(understanding_layers=1, generation_layers=layers)
    one, other = (under(weights, f"branches.{task}.stack.") for task in Task)
    assert same(one, other) == copied
    if not copied:
        name = "layers.0.mlp.up.weight"
        assert not torch.equal(one[name], other[name])


def test_first_layers_of_generation_start_as_a_copy_of_those_of_understanding():
    weights = weights_of(separate_first_layers=2, generation_layers=3)
    one, other = (under(weights, f"trunk.first_stacks.{task}.") for task in Task)
    assert one and same(one, other)
    name = "layers.0.mlp.up.weight"
    assert not torch.equal(one[name], weights[f"trunk.stack.{name}"])
    expert = weights_of(separate_first_layers=2, tasks=(Task.GENERATION,))
    assert not torch.equal(one[name], expert[f"trunk.first_stacks.generation.{name}"]), "it has nothing to copy"


def test_distributions_are_those_of_the_release():
    weights = weights_of(rq_head=RqHeadConfig(hidden_size=96, attention_size=128, num_attention_heads=4, num_blocks=2))
    head = under(weights, "branches.generation.head.")
    for name, width in (("blocks.0.attention.query", 128), ("blocks.1.mlp_down", 4 * 96), ("from_body", 32)):
        bound = width**-0.5
        for kind in ("weight", "bias"):
            values = head[f"{name}.{kind}"]
            assert values.abs().max() <= bound
            assert values.std() == pytest.approx(bound / 3**0.5, rel=0.2), "uniform"
    assert head["depth_positions_CP"].std() == pytest.approx(0.02, rel=0.2)
    assert (head["out_norm.weight"] == 1).all() and (head["out_norm.bias"] == 0).all()
    assert weights["trunk.projector.marks.weight"].std() == pytest.approx(1.0, rel=0.3)
    body = under(weights, "trunk.stack.layers.0.")
    assert body["mlp.gate.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert (body["attention.query.bias"] == 0).all() and (body["mlp_norm.weight"] == 1).all()
