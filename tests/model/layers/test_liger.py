"""The adapters to liger-kernel: called as its functions are declared, and equal to plain torch on its real kernels."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ufork.model.decoder import gated
from ufork.model.layers.liger import liger_gated, liger_rotate
from ufork.model.layers.rotary import Rotary, rotate


class LigerRopeFunction:
    """Takes what liger-kernel 0.8.5 takes."""

    @staticmethod
    def apply(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
        """q and k are [1, heads, tokens, width]; cos and sin [1, tokens, width]."""
        assert len(q) == len(k) == len(cos) == len(sin) == 1 and q.shape[2:] == k.shape[2:] == cos.shape[1:]
        rotated = rotate(q[0].transpose(0, 1), k[0].transpose(0, 1), cos[0], sin[0])
        return tuple(x.transpose(0, 1)[None] for x in rotated)


class LigerSiLUMulFunction:
    @staticmethod
    def apply(a, b, gate_multiplier=1.0, down_multiplier=1.0):
        return gated(a, b)


@pytest.fixture
def liger(monkeypatch):
    operations = SimpleNamespace(
        LigerRopeFunction=LigerRopeFunction,
        LigerSiLUMulFunction=LigerSiLUMulFunction,
    )
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace(ops=operations))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", operations)


def inputs_of(dtype, seed=0, device="cpu"):
    """Arguments of the kernels; a prime number of tokens, and widths that are no powers of two."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in [(7, 48), (7, 48), (7, 4, 12), (7, 2, 12)]]
    gate, up, query, key = (x.to(device, dtype).requires_grad_() for x in tensors)
    rotary = Rotary(torch.arange(7, device=device), head_dim=12, theta=1e4, dtype=dtype)
    return {
        (liger_gated, gated): ((gate, up), ()),
        (liger_rotate, rotate): ((query, key), (rotary.cos_TW, rotary.sin_TW)),
    }


def require_equal(tolerance, dtype, device="cpu"):
    for (ours, plain), (tensors, constants) in inputs_of(dtype, device=device).items():
        results = []
        for function in (ours, plain):
            out = function(*(x * 1 for x in tensors), *constants)  # liger's write over their arguments
            outs = out if isinstance(out, tuple) else (out,)
            directions = [torch.linspace(-1, 1, x.numel()).view(x.shape).to(x) for x in outs]
            results.append([*outs, *torch.autograd.grad(outs, tensors, directions)])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_functions_are_called_as_they_are_declared(liger):
    require_equal(1e-6, torch.float32)


INTERPRETED = """
import numpy
import triton.language as tl
from triton.runtime import interpreter

convert = interpreter._implicit_cvt

def with_floats(argument):  # a GPU's launcher passes floats as fp32
    if isinstance(argument, float):
        handle = interpreter.TensorHandle(numpy.array([argument], numpy.float32), tl.float32)
        return tl.tensor(handle, tl.float32)
    return convert(argument)

interpreter._implicit_cvt = with_floats
import torch
from tests.model.layers.test_liger import require_equal
require_equal(1e-5, torch.float32)
require_equal(2e-3, torch.float16)
"""


@pytest.mark.slow
def test_ligers_kernels_equal_plain_torch_in_tritons_interpreter():
    pytest.importorskip("triton.language")
    pytest.importorskip("liger_kernel")
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-6)])
def test_ligers_kernels_equal_plain_torch_on_a_gpu(dtype, tolerance):
    pytest.importorskip("liger_kernel")
    require_equal(tolerance, dtype, "cuda")
