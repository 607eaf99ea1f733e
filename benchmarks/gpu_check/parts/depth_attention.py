"""Attention over the depths of image positions, [7290, 4, 32, 112] at the released size, by each kernel there is.

Sequences of four tokens make kernels for long ones waste most of their work and memory.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.measuring import (
    attempt,
    described,
    device_of,
    forward_and_backward,
    half_precision,
    with_gradients,
)
from benchmarks.gpu_check.report import Report
from ufork.model.kernels import choose_kernels
from ufork.model.layers.depth_attention import DepthKernel, depth_attention

SHAPE, CPU_SHAPE = (7290, 4, 32, 112), (30, 4, 4, 16)
"""Image positions of a packed sequence, depths, heads, features."""
MOST_ERROR = 0.02
BACKENDS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}
"""FlashAttention-2 comes last: on an H200 its backward pass accessed memory that is not its own (torch 2.11), after
which nothing runs in the process."""


def run(report: Report, *, cpu: bool) -> None:
    """Fails if the kernel that ufork uses is wrong."""
    device = device_of(cpu=cpu)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(CPU_SHAPE if cpu else SHAPE, generator=generator).to(device) for _ in range(4)]
    expected = with_gradients(depth_attention, inputs[:3], inputs[3])
    *halves, gradient = (tensor.to(half_precision(device)) for tensor in inputs)
    kernels: dict[str, DepthKernel] = {
        "chosen": choose_kernels(device).depth_attention,
        "products": depth_attention,
        **{name: _on(backend) for name, backend in BACKENDS.items()},
    }
    for name, kernel in kernels.items():
        found = attempt(partial(forward_and_backward, kernel, halves, gradient, expected))
        report.figure(name, found)
        if name == "chosen":
            error = found.get("error", float("inf"))
            report.check("chosen kernel", error < MOST_ERROR, f"{found}, expected an error below {MOST_ERROR}")
        if name in ("chosen", "flash"):
            report.headline(f"{name} {described(found)}")


def _on(backend: SDPBackend) -> DepthKernel:
    def attention(query_ICHW: Tensor, key_ICHW: Tensor, value_ICHW: Tensor) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query_ICHW, key_ICHW, value_ICHW))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)

    return attention
