"""Statistics in fp32, and NVIDIA apex where it is the genuine one."""

import logging
import sys
from types import ModuleType

import pytest
import torch

from ufork.model.layers.normalization import find_apex_rms_norm, rms_norm


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


class ClaimsCuda(torch.Tensor):
    """A tensor of the CPU that says it is on a CUDA device."""

    is_cuda = True


@pytest.fixture(autouse=True)
def forget_what_was_found():
    find_apex_rms_norm.cache_clear()
    yield
    find_apex_rms_norm.cache_clear()


def pretend_apex(monkeypatch, **kernels):
    for name in ("fused_layer_norm_cuda", "apex", "apex.normalization", "apex.normalization.fused_layer_norm"):
        module = ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    vars(module).update(kernels)


def test_apex_is_called_with_valid_arguments_and_only_on_cuda(monkeypatch, caplog):
    calls = []

    def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
        assert input.dtype == weight.dtype
        assert tuple(normalized_shape) == tuple(weight.shape) == tuple(input.shape[-1:])
        calls.append(eps)
        return by_formula(input.as_subclass(torch.Tensor), weight, eps).to(input.dtype)

    pretend_apex(monkeypatch, fused_rms_norm_affine=fused_rms_norm_affine)
    hidden, weight = torch.randn(3, 8), torch.rand(8)
    expected = rms_norm(hidden, weight, 1e-5)
    assert not calls
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            found = rms_norm(hidden.as_subclass(ClaimsCuda), weight, 1e-5)
    torch.testing.assert_close(found, expected)
    assert calls == [1e-5] * 2
    assert [record.message for record in caplog.records] == ["RMSNorm: NVIDIA apex's fused kernel"]


def test_other_packages_named_apex_are_not_used(monkeypatch):
    hidden, weight = torch.randn(3, 8), torch.rand(8)
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))  # PyPI's: no `normalization` in it
    assert find_apex_rms_norm() is None
    find_apex_rms_norm.cache_clear()
    pretend_apex(monkeypatch)
    assert find_apex_rms_norm() is None
    found = rms_norm(hidden.as_subclass(ClaimsCuda), weight, 1e-5)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), rms_norm(hidden, weight, 1e-5))


def test_apex_without_its_compiled_extensions_is_not_used(monkeypatch):
    """The Python package without extensions can be imported, but raises at the first call."""
    pretend_apex(monkeypatch, fused_rms_norm_affine=lambda *_: pytest.fail("called"))
    monkeypatch.setitem(sys.modules, "fused_layer_norm_cuda", None)
    assert find_apex_rms_norm() is None
