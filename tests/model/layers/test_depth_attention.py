"""Both forms of depth attention are the formula, for the last depth alone too, without a kernel for long sequences."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from ufork.model.layers.depth_attention import depth_attention, elementwise_depth_attention


def inputs_of(dtype=torch.float64, positions=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(positions, 4, 3, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def torchs(query, key, value):
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)), is_causal=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("positions", [5, 1, 0])
@pytest.mark.parametrize("form", [depth_attention, elementwise_depth_attention])
def test_both_forms_equal_torchs_attention(form, positions, dtype, tolerance):
    inputs = inputs_of(dtype, positions)
    found, expected = form(*inputs), torchs(*inputs)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    direction = torch.ones_like(expected)
    for ours, reference in zip(
        *(torch.autograd.grad(out, inputs, direction) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("depth", range(4))
def test_one_depth_sees_itself_and_those_before(depth):
    query, key, value = inputs_of()
    alone = depth_attention(query[:, depth : depth + 1], key[:, : depth + 1], value[:, : depth + 1])
    torch.testing.assert_close(alone, depth_attention(query, key, value)[:, depth : depth + 1])


def test_no_kernel_for_long_sequences_is_called():
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=AssertionError):
        depth_attention(*inputs_of())
