"""The modules of a stage with the weights that training starts from."""

import pytest
import torch

from tests.stages import initial_model
from tests.tiny import DIMENSIONS, tiny_config, tiny_model
from ufork.model.weights import WeightsConfig, save_weights
from ufork.parallel.layout import Stage
from ufork.train.initial_model import InitialModel


def parameters_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("from_folder", [False, True])
def test_every_stage_has_the_whole_models_weights_and_nothing_else_is_drawn(stage, from_folder, tmp_path):
    config = tiny_config(tie_word_embeddings=True)
    expected = parameters_of(tiny_model(config))
    initial = initial_model(config)
    if from_folder:
        save_weights(tmp_path, expected, initial.config)
        initial = InitialModel(config=initial.config, codebook_KE=initial.codebook_KE, seed=1, folder=tmp_path)
    expected["branches.understanding.head.weight"] = expected["trunk.token_embedding.weight"]
    before = torch.get_rng_state()
    model = initial.build(stage)
    assert torch.equal(torch.get_rng_state(), before), "layers were initialised by torch, only to be overwritten"
    parameters = parameters_of(model)
    assert parameters and all(torch.equal(weight, expected[name]) for name, weight in parameters.items())
    codebooks = [buffer for name, buffer in model.named_buffers() if name.endswith("codebook_KE")]
    assert all(torch.equal(codebook, initial.codebook_KE) for codebook in codebooks)
    assert codebooks or stage is Stage.UNDERSTANDING


def test_a_file_that_is_replaced_does_not_change_a_model_that_was_built(tmp_path):
    config = WeightsConfig(model=tiny_config(), dimensions=DIMENSIONS)
    expected = parameters_of(tiny_model(seed=1))
    save_weights(tmp_path, expected, config)
    codebook_KE = torch.zeros(DIMENSIONS.codebook_size, DIMENSIONS.code_width)
    model = InitialModel(config=config, codebook_KE=codebook_KE, folder=tmp_path).build(Stage.COLOCATED)
    save_weights(tmp_path, parameters_of(tiny_model(seed=2)), config)
    assert all(torch.equal(weight, expected[name]) for name, weight in parameters_of(model).items())
