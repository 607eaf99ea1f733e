"""The fastest fp32 matrix product that torch has on this CPU, put under a model's linear layers.

MKL, which torch calls for fp32, runs far below its peak on some CPUs that oneDNN runs well on. Both are timed once, and
oneDNN is used where it is clearly faster. In bf16 torch calls oneDNN by itself, and on a GPU there is no choice.
"""

import functools
import logging
import math
import time
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

TIMED_SHAPE = (2048, 256, 1024)
"""Rows, inputs, outputs of the product that is timed."""
TIMED_REPEATS = 15
WORTHWHILE = 1.5
"""How much faster oneDNN must be: its backward pass has to turn its operands over, and noise should not decide."""


LinearKernel = Literal["torch", "onednn"]
"""Their results differ by rounding: a run that is to be repeated to the last bit keeps to one."""


def fastest_linear(device: torch.device, dtype: torch.dtype) -> LinearKernel:
    """What computes products of `dtype` on `device` fastest; logs the choice and both rates."""
    if device.type != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return "torch"
    standard, onednn = _gflops()
    chosen: LinearKernel = "onednn" if onednn > WORTHWHILE * standard else "torch"
    log.info("linear layers: %s (oneDNN %.0f, torch's MKL %.0f GFLOP/s)", chosen, onednn, standard)
    return chosen


def use_linear(model: nn.Module, kernel: LinearKernel) -> None:
    """Has the `nn.Linear` layers of `model` compute by `kernel`."""
    for module in model.modules():
        if kernel == "onednn" and type(module) is nn.Linear:
            module.__class__ = OneDnnLinear


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in fp32 on the CPU, by oneDNN forward and backward."""

    def forward(self, values: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        if not values.numel():  # oneDNN has no product of nothing, and a row without images asks for one
            return super().forward(values)
        return _OneDnnLinear.apply(values.flatten(0, -2), self.weight, self.bias).unflatten(0, values.shape[:-1])


def onednn_product(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Product x weight^T + bias, RO."""
    return torch.ops.mkldnn._linear_pointwise(x_RI, weight_OI, bias_O, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_RI, weight_OI)
        return onednn_product(x_RI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, weight_OI = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        gradient_RO = gradients[0].contiguous()
        return (
            onednn_product(gradient_RO, weight_OI.T.contiguous()) if wants_x else None,
            onednn_product(gradient_RO.T.contiguous(), x_RI.T.contiguous()) if wants_weight else None,
            gradient_RO.sum(0) if wants_bias else None,
        )


@functools.cache
def _gflops() -> tuple[float, float]:
    """The best rates of MKL and oneDNN, timed once a process, so that all its models compute alike.

    They take turns: what else the machine does then slows both.
    """
    rows, inputs, outputs = TIMED_SHAPE
    x_RI, weight_OI = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    standard, onednn = math.inf, math.inf
    for _ in range(TIMED_REPEATS):
        standard = min(standard, _seconds(F.linear, x_RI, weight_OI))
        onednn = min(onednn, _seconds(onednn_product, x_RI, weight_OI))
    flops = 2 * rows * inputs * outputs
    return flops / standard / 1e9, flops / onednn / 1e9


def _seconds(product: Any, x_RI: Tensor, weight_OI: Tensor) -> float:
    start = time.perf_counter()
    product(x_RI, weight_OI)
    return time.perf_counter() - start
