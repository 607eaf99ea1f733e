"""RMSNorm by its formula, with statistics in fp32."""

import pytest
import torch

from ufork.model.layers.normalization import fused_rms_norm, rms_norm


def by_formula(hidden, weight, eps):
    hidden, weight = hidden.double(), weight.double()
    return hidden / (hidden.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize(
    ("dtype", "size", "tolerance"),
    [
        (torch.float32, 1.0, 1e-6),
        (torch.bfloat16, 1.0, 2**-7),
        (torch.bfloat16, 1e15, 2**-7),
        (torch.float16, 500.0, 2**-9),
    ],
)
def test_statistics_are_those_of_fp32(dtype, size, tolerance):
    """Squares of 500 overflow fp16: statistics in the input's own precision would give zeros."""
    generator = torch.Generator().manual_seed(0)
    hidden = (size * torch.randn(7, 64, generator=generator)).to(dtype)
    weight = torch.rand(64, generator=generator).to(dtype)
    normed = rms_norm(hidden, weight, 1e-6)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.double(), by_formula(hidden, weight, 1e-6), rtol=tolerance, atol=1e-6)


def test_eps_bounds_the_scale_of_tiny_inputs():
    hidden = torch.full((1, 4), 1e-4)
    torch.testing.assert_close(rms_norm(hidden, torch.ones(4), 1e-6), hidden / (1e-8 + 1e-6) ** 0.5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_torchs_kernel_is_the_same_function(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 64, generator=generator).to(dtype).requires_grad_()
    weight = torch.rand(64, generator=generator).to(dtype).requires_grad_()
    direction = torch.randn(7, 64, generator=generator).to(dtype)
    plain, fused = rms_norm(hidden, weight, 1e-6), fused_rms_norm(hidden, weight, 1e-6)
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=tolerance)
    for found, expected in zip(
        *(torch.autograd.grad(normed, (hidden, weight), direction) for normed in (fused, plain)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=2 * tolerance, atol=4 * tolerance)
