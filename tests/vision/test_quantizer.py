"""The residual quantizer, compared with brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ufork.vision.quantizer import ResidualQuantizer


def make(*, size: int = 16, width: int = 6, depth: int = 3, seed: int = 0) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(codebook_size=size, code_width=width, codes_per_position=depth)
    quantizer.codebook.copy_(torch.randn(size, width, generator=torch.Generator().manual_seed(seed)))
    return quantizer


def random_features(*shape: int, seed: int = 1) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 40),
    width=st.integers(1, 12),
    depth=st.integers(1, 5),
    num_vectors=st.integers(1, 30),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 10_000),
)
def test_each_depth_takes_the_row_nearest_to_the_residual(size, width, depth, num_vectors, scale, seed):
    quantizer = make(size=size, width=width, depth=depth, seed=seed)
    features = scale * random_features(num_vectors, width, seed=seed + 1)
    codes = quantizer.encode(features).numpy()
    codebook = quantizer.codebook.double().numpy()
    for vector, chosen in zip(features.double().numpy(), codes, strict=True):
        residual = vector
        for code in chosen:
            distances = ((residual - codebook) ** 2).sum(axis=1)
            assert distances[code] <= distances.min() + 1e-5 * (1 + scale**2)
            residual = residual - codebook[code]


def test_features_are_the_sum_of_the_rows_and_embed_gives_the_same():
    quantizer = make()
    quantized = quantizer(random_features(2, 3, 4, 6))
    rows = quantizer.codebook.numpy()[quantized.codes.numpy()]
    np.testing.assert_allclose(quantized.features.numpy(), rows.sum(axis=-2), atol=1e-5)
    np.testing.assert_allclose(quantizer.embed(quantized.codes).numpy(), rows.sum(axis=-2), atol=1e-5)
    np.testing.assert_allclose(quantizer.embed(quantized.codes[..., :2]).numpy(), rows[..., :2, :].sum(-2), atol=1e-5)


def test_forward_and_encode_agree_and_return_the_residuals():
    quantizer, features = make(), random_features(5, 6)
    quantized = quantizer(features)
    assert torch.equal(quantized.codes, quantizer.encode(features))
    residual = features
    for depth in range(3):
        torch.testing.assert_close(quantized.residuals[:, depth], residual)
        residual = residual - quantizer.codebook[quantized.codes[:, depth]]


def test_gradient_passes_straight_through_to_the_input():
    quantizer, features = make(), random_features(4, 6).requires_grad_()
    weights = random_features(4, 6, seed=3)
    (quantizer(features).features * weights).sum().backward()
    torch.testing.assert_close(features.grad, weights)


def test_commitment_is_the_mean_over_the_depths_partial_sums():
    quantizer, features = make(), random_features(4, 6)
    quantized = quantizer(features)
    sums = np.cumsum(quantizer.codebook.numpy()[quantized.codes.numpy()], axis=1)
    expected = np.mean([((features.numpy() - sums[:, depth]) ** 2).mean() for depth in range(3)])
    assert quantized.commitment.item() == pytest.approx(expected, rel=1e-5)


def test_commitment_pulls_the_input_towards_its_codes():
    quantizer, features = make(), random_features(4, 6).requires_grad_()
    before = quantizer(features).commitment
    before.backward()
    moved = (features - 0.1 * features.grad).detach()
    assert quantizer(moved).commitment < before


def test_codes_are_chosen_in_fp32_under_autocast():
    quantizer, features = make(size=64, width=32, depth=4), random_features(200, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, encoded = quantizer(features), quantizer.encode(features)
    assert torch.equal(inside.codes, quantizer(features).codes) and torch.equal(encoded, inside.codes)
    assert inside.features.dtype == torch.float32


def test_forward_in_train_mode_changes_no_value_and_the_codebook_is_no_parameter():
    quantizer = make().train()
    before = quantizer.codebook.clone()
    quantized = quantizer(random_features(50, 6).requires_grad_())
    (quantized.features.sum() + quantized.commitment).backward()
    assert torch.equal(quantizer.codebook, before)
    assert list(quantizer.parameters()) == []
