"""A tiny model whose random weights are large enough that its choices depend on all that it sees."""

import pytest
import torch

from tests.tiny import tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session", params=[0, 2], ids=["Y", "separate first layers"])
def model(request):
    model = tiny_model(tiny_config(separate_first_layers=request.param))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5, generator=generator)
    return model.eval()
