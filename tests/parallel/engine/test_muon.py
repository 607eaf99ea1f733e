"""Muon: torch's where that can compute it, the polynomial that it applies to singular values, and whom it updates."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import tiny_config, tiny_model
from ufork.model.unifork import UniFork
from ufork.parallel.engine import muon
from ufork.parallel.engine.muon import (
    COEFFICIENTS,
    NUM_ITERATIONS,
    Muon,
    newton_schulz_flops,
    orthogonalize,
    takes_muon,
)

SHAPES = [(8, 8), (24, 8), (8, 24), (8, 8), (24, 8)]
RATE, WEIGHT_DECAY = 0.02, 0.1


def random_matrices(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def train(optimizer, parameters, steps: int = 4) -> list[torch.Tensor]:
    for step in range(steps):
        for parameter, gradient in zip(parameters, random_matrices(step + 1), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_steps_are_those_of_torchs_muon(monkeypatch):
    ours, theirs = ([nn.Parameter(matrix) for matrix in random_matrices(0)] for _ in range(2))
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's always computes in bf16
    expected = train(
        torch.optim.Muon(theirs, lr=RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"), theirs
    )
    others = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    trained = train(Muon(ours, others, lr=RATE, weight_decay=WEIGHT_DECAY), ours)
    torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-6)


def test_others_are_updated_by_adamw_at_a_rate_of_their_own():
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    alone, beside = torch.optim.AdamW(weights[:1], lr=RATE), torch.optim.AdamW(weights[1:], lr=RATE)
    (matrix,) = matrices = [nn.Parameter(torch.zeros(4, 4))]
    optimizer = Muon(matrices, beside, lr=RATE, weight_decay=0.0, rate_ratio=3.0)
    for _ in range(3):
        for parameter in (*weights, matrix):
            parameter.grad = torch.ones_like(parameter)
        alone.step()
        optimizer.step()
    assert torch.equal(*weights)
    assert [group["lr"] for group in optimizer.param_groups] == [3 * RATE, RATE]
    assert optimizer.state[weights[1]]["step"] == 3


@pytest.mark.parametrize("numbers", [1, muon.BATCH_NUMBERS])
def test_orthogonalization_applies_the_polynomial_to_the_singular_values(monkeypatch, numbers):
    monkeypatch.setattr(muon, "BATCH_NUMBERS", numbers)
    matrices = random_matrices(0)
    for matrix, result in zip(matrices, orthogonalize(matrices), strict=True):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        values = values / values.norm()
        for _ in range(NUM_ITERATIONS):
            values = sum(c * values**power for c, power in zip(COEFFICIENTS, (1, 3, 5), strict=True))
        torch.testing.assert_close(result.double(), left @ values.diag() @ right, rtol=0, atol=1e-5)


def test_a_matrix_without_gradients_stays():
    assert not orthogonalize([torch.zeros(3, 5)])[0].any()


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_matrices_of_linear_layers_but_for_those_of_logits(tied):
    model: UniFork = tiny_model(tiny_config(tie_word_embeddings=tied))
    inside = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    inside.remove(id(model.branches["generation"].head.out.weight))
    taken = {id(p) for name, p in model.named_parameters() if takes_muon(name, p.dim())}
    assert taken == inside


def test_operations_are_those_of_the_products():
    with FlopCounterMode(display=False) as counter:
        orthogonalize([torch.ones(6, 20)])
    assert counter.get_total_flops() == newton_schulz_flops((20, 6))
