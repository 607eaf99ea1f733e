"""Cosines and norms of the tasks' gradients: equal to those of one graph per task, differentiated at once."""

import pytest
import torch

from tests.tiny import packed_sequence, tiny_config, tiny_model
from ufork.analysis.gradient_conflict import Agreement, gradient_conflict
from ufork.vocabulary import Task

TEXTS = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]


def sequences_of(*, images=True):
    return {
        task: [packed_sequence(task, texts=[text], images=images, seed=i) for i, text in enumerate(TEXTS)]
        for task in Task
    }


def brute_force(model, sequences, parameters):
    """Cosine and norms of the gradients in `parameters`, from one graph per task."""
    gradients = []
    for task in Task:
        num_targets = sum(sequence.num_targets for sequence in sequences[task])
        loss = torch.stack([model(sequence) for sequence in sequences[task]]).sum() / num_targets
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]).double())
    return [torch.cosine_similarity(*gradients, dim=0), *(gradient.norm() for gradient in gradients)]


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(tie_word_embeddings=False),
        tiny_config(trunk_layers=1),
        tiny_config(separate_first_layers=1),
    ],
)
def test_groups_equal_brute_force(config):
    model, sequences = tiny_model(config), sequences_of()
    layers = model.trunk.stack.layers
    groups = {
        "all": [weight for name, weight in model.trunk.named_parameters() if not name.startswith("first_stacks.")],
        "token_embedding": [model.trunk.token_embedding.weight],
        "projector": list(model.trunk.projector.parameters()),
        **{f"layers.{i}": list(layer.parameters()) for i, layer in enumerate(layers)},
        "layers.*.attention.query.weight": [layer.attention.query.weight for layer in layers],
        "layers.*.mlp.down.weight": [layer.mlp.down.weight for layer in layers],
    }
    figures = gradient_conflict(model, sequences).figures()
    for name, parameters in groups.items():
        found = [figures[f"cosine/{name}"], *(figures[f"norm/{task}/{name}"] for task in Task)]
        expected = brute_force(model, sequences, parameters)
        torch.testing.assert_close(torch.tensor(found).double(), torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert {name.split("/")[-1] for name in figures} >= groups.keys()


def test_nothing_but_shared_gradients_is_computed_and_none_is_left():
    model, calls = tiny_model(tiny_config(tie_word_embeddings=False)), []

    def look():
        calls.append(all(parameter.grad is None for parameter in model.branches.parameters()))

    gradient_conflict(model, sequences_of(), after_sequence=look)
    assert calls == [True] * 2 * len(TEXTS)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_zero_gradient_has_no_cosine():
    sequences = sequences_of() | {Task.UNDERSTANDING: sequences_of(images=False)[Task.UNDERSTANDING]}
    figures = gradient_conflict(tiny_model(), sequences).figures()
    assert figures["norm/understanding/projector"] == 0 < figures["norm/generation/projector"]
    assert "cosine/projector" not in figures and "cosine/all" in figures


def test_opposite_gradients_have_the_cosine_minus_one():
    squares = {Task.UNDERSTANDING: 4.0, Task.GENERATION: 9.0}
    assert Agreement(inner_product=-6.0, squared_norms=squares).cosine == -1
