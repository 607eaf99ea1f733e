"""The Y in its variants: every fork depth, one task alone, tied or not, recomputing or not."""

import copy

import pytest
import torch

from tests.tiny import DIMENSIONS, packed_sequence, tiny_config, tiny_model
from ufork.errors import ConfigError
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.vocabulary import Task

SEQUENCES = {task: packed_sequence(task, texts=[[5, 6, 7], [8, 9, 10, 11]]) for task in Task}


def gradients_of(model, tasks=tuple(Task)):
    model.zero_grad()
    sum(model(SEQUENCES[task]) for task in tasks).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def stacks_of(model, task):
    first = model.trunk.first_stacks
    return [*([first[task]] if task in first else []), model.trunk.stack, model.branches[task].stack]


@pytest.mark.parametrize(
    "changes",
    [
        {"trunk_layers": 3, "understanding_layers": 0, "generation_layers": 0},
        {"trunk_layers": 0, "understanding_layers": 2, "generation_layers": 2},
        {"trunk_layers": 1, "understanding_layers": 1, "generation_layers": 3},
        {"tasks": (Task.UNDERSTANDING,)},
        {"tasks": (Task.GENERATION,)},
        {"separate_first_layers": 2, "generation_layers": 3},
    ],
    ids=[
        "fully shared",
        "nothing shared",
        "uneven branches",
        "understanding expert",
        "generation expert",
        "separate first layers",
    ],
)
def test_every_fork_trains_all_of_its_parameters(changes):
    model = tiny_model(tiny_config(**changes))
    gradients = gradients_of(model, model.config.tasks)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all() and gradient.any(), name
    for task in model.config.tasks:
        numbers = [layer.layer for stack in stacks_of(model, task) for layer in stack.layers]
        assert numbers == list(range(model.config.path_layers(task)))


@pytest.mark.parametrize("task", Task)
def test_branches_and_first_layers_get_gradients_only_from_their_task(task):
    model = tiny_model(tiny_config(separate_first_layers=1))
    model(SEQUENCES[task]).backward()
    (other,) = set(Task) - {task}
    for stack in (model.branches[other].stack, model.trunk.first_stacks[other]):
        assert all(parameter.grad is None for parameter in stack.parameters())
    for module in (model.branches[task], *stacks_of(model, task)):
        assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("task", Task)
def test_first_layers_the_trunk_and_a_branch_are_one_stack(task):
    """Loss and gradients are those of the same layers put into one stack by hand."""
    model = tiny_model(tiny_config(separate_first_layers=2))
    for parameter in model.parameters():  # the tasks' first layers start as copies
        torch.nn.init.normal_(parameter, std=0.3)
    stacked = copy.deepcopy(model)
    parameters = dict(stacked.named_parameters())
    layers = [layer for stack in stacks_of(stacked, task) for layer in stack.layers]
    stacked.trunk.first_stacks.clear()
    stacked.branches[task].stack.layers = torch.nn.ModuleList()
    stacked.trunk.stack.layers = torch.nn.ModuleList(layers)
    loss = stacked(SEQUENCES[task])
    loss.backward()
    assert torch.equal(model(SEQUENCES[task]), loss)
    for name, gradient in gradients_of(model, (task,)).items():
        assert torch.equal(gradient, parameters[name].grad), name


def test_without_separate_first_layers_names_and_config_are_those_of_the_y():
    assert not [name for name, _ in tiny_model().named_parameters() if "first_stacks" in name]
    assert "separate_first_layers" not in tiny_config().model_dump()
    config = tiny_config(separate_first_layers=2)
    assert ModelConfig.from_mapping(config.model_dump(mode="json"), origin="config.json") == config


def test_recomputing_runs_layers_again_and_changes_no_gradient():
    model = tiny_model()
    calls = []
    for layer in (model.trunk.stack.layers[0], model.branches[Task.GENERATION].stack.layers[0]):
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = gradients_of(model)
    assert len(calls) == 3, "the trunk's layer for both tasks, the branch's for one"
    model.set_recompute(True)
    for name, gradient in gradients_of(model).items():
        assert torch.equal(gradient, expected[name]), name
    assert len(calls) == 3 + 6
    with torch.no_grad():
        model(SEQUENCES[Task.GENERATION])
    assert len(calls) == 9 + 2


def test_a_tied_head_shares_the_embedding_and_an_untied_one_does_not():
    tied, untied = tiny_model(tiny_config(tie_word_embeddings=True)), tiny_model(tiny_config(tie_word_embeddings=False))
    name = "branches.understanding.head.weight"
    assert tied.branches[Task.UNDERSTANDING].head.weight is tied.trunk.token_embedding.weight
    assert name not in dict(tied.named_parameters())
    head = dict(untied.named_parameters())[name]
    assert head is not untied.trunk.token_embedding.weight
    assert not torch.equal(head, untied.trunk.token_embedding.weight)
    unseen = 200
    embedding = "trunk.token_embedding.weight"
    reached = [bool(gradients_of(m, (Task.UNDERSTANDING,))[embedding][unseen].any()) for m in (tied, untied)]
    assert reached == [True, False]


def test_an_image_is_embedded_at_its_positions():
    """Another code changes the states from its position on, and nothing before it."""
    model = tiny_model()
    sequence = SEQUENCES[Task.UNDERSTANDING]
    before = model.trunk.embed(sequence)
    sequence.codes_IC[1, 0] += 1
    changed = (model.trunk.embed(sequence) != before).any(-1).nonzero().flatten().tolist()
    sequence.codes_IC[1, 0] -= 1
    assert changed == [int(sequence.image_positions_I[1])]
    marks = model.trunk.projector.marks.weight
    assert torch.equal(before[sequence.image_begins_M], marks[0].expand(2, -1))
    assert torch.equal(before[sequence.image_ends_M], marks[1].expand(2, -1))


def test_the_codebook_is_no_parameter_and_reaches_every_embedding_of_codes():
    model = tiny_model()
    codebook = torch.randn(DIMENSIONS.codebook_size, DIMENSIONS.code_width)
    model.set_codebook(codebook)
    held = [buffer for name, buffer in model.named_buffers() if name.endswith("codebook_KE")]
    assert len(held) == 2 and all(torch.equal(buffer, codebook) for buffer in held)
    assert not any("codebook" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("config", "values", "fault"),
    [
        (
            ModelConfig,
            {"hidden_size": 33, "num_attention_heads": 4},
            "hidden_size 33 is not a multiple of num_attention_heads 4",
        ),
        (ModelConfig, {"hidden_size": 36, "num_attention_heads": 12}, "head_dim 3 is odd"),
        (ModelConfig, {"hidden_size": 2, "num_attention_heads": 4}, "head_dim"),
        (
            ModelConfig,
            {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 3},
            "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
        ),
        (ModelConfig, {"tasks": ["generation", "generation"]}, "each once"),
        (ModelConfig, {"tasks": []}, "at least one task"),
        (ModelConfig, {"trunk_layers": -1}, "trunk_layers"),
        (
            RqHeadConfig,
            {"attention_size": 30, "num_attention_heads": 4},
            "attention_size 30 is not a multiple of num_attention_heads 4",
        ),
        (RqHeadConfig, {"dropout": 1.0}, "dropout"),
        (
            Dimensions,
            {"vocab_size": 0, "codebook_size": 1, "code_width": 1, "codes_per_position": 1},
            "vocab_size",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(config, values, fault):
    with pytest.raises(ConfigError, match=fault):
        config.from_mapping(values, origin="recipe.yaml")
