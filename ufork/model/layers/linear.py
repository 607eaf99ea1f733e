"""Linear layers whose fp32 products on a CPU run in oneDNN instead of torch's default, MKL.

On two cores of an AMD EPYC (Zen 5) at 1,100 x 256 x 1,024, oneDNN multiplies at 482 GFLOP/s with AVX-512 and 234 with
AVX2, MKL at 222 with either (`python -m benchmarks.gemm` prints other shapes). oneDNN reads one of its operands in any
order, so a backward pass makes one transposed copy, of the narrower operand of the weight's gradient. In bf16 torch
calls oneDNN already, and on a GPU there is no choice.

Shapes: R rows, I inputs, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LinearKernel = Literal["torch", "onednn"]
"""Library of matrix products. Results differ by rounding; name one to reproduce a run bit for bit on another CPU."""
ONEDNN_CAPABILITIES = ("AVX2", "AVX512")
"""torch's names of the instruction sets with which oneDNN is the faster one."""


def default_linear(device: torch.device, dtype: torch.dtype) -> LinearKernel:
    """Returns what `train.linear=auto` stands for: oneDNN for fp32 on a CPU with AVX2 or AVX-512, torch otherwise."""
    has_choice = device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return "onednn" if has_choice and torch.backends.cpu.get_cpu_capability() in ONEDNN_CAPABILITIES else "torch"


@dataclass(frozen=True, kw_only=True)
class Products:
    """The three matrix products of a linear layer; of oneDNN's, none may be empty."""

    outputs: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """(x RI, weight OI, bias O) -> RO."""
    input_gradient: Callable[[Tensor, Tensor], Tensor]
    """(gradient RO, weight OI) -> RI."""
    weight_gradient: Callable[[Tensor, Tensor], Tensor]
    """(gradient RO, x RI) -> OI."""


def _onednn_product(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Returns x weight^T + bias, RO; the weight may have any strides, of `x` a contiguous copy is made."""
    return torch.ops.mkldnn._linear_pointwise(x_RI.contiguous(), weight_OI, bias_O, "none", [], "")


def _onednn_weight_gradient(gradient_RO: Tensor, x_RI: Tensor) -> Tensor:
    if gradient_RO.shape[1] < x_RI.shape[1]:
        return _onednn_product(gradient_RO.T, x_RI.T)
    return _onednn_product(x_RI.T, gradient_RO.T).T.contiguous()  # adding in another order takes longer than both


TORCH_PRODUCTS = Products(
    outputs=F.linear,
    input_gradient=torch.matmul,
    weight_gradient=lambda gradient_RO, x_RI: gradient_RO.T @ x_RI,
)
ONEDNN_PRODUCTS = Products(
    outputs=_onednn_product,
    input_gradient=lambda gradient_RO, weight_OI: _onednn_product(gradient_RO, weight_OI.T),
    weight_gradient=_onednn_weight_gradient,
)
PRODUCTS: dict[LinearKernel, Products] = {"torch": TORCH_PRODUCTS, "onednn": ONEDNN_PRODUCTS}


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in fp32 on the CPU, with oneDNN forward and backward."""

    def forward(self, values: Tensor) -> Tensor:
        """Maps [..., inputs] to [..., outputs]."""
        if not values.numel():  # oneDNN rejects empty operands, which a packed sequence without images produces
            return super().forward(values)
        return _OneDnnLinear.apply(values.flatten(0, -2), self.weight, self.bias).unflatten(0, values.shape[:-1])


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_RI, weight_OI)
        return ONEDNN_PRODUCTS.outputs(x_RI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, weight_OI = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        gradient_RO = gradients[0].contiguous()
        return (
            ONEDNN_PRODUCTS.input_gradient(gradient_RO, weight_OI) if wants_x else None,
            ONEDNN_PRODUCTS.weight_gradient(gradient_RO, x_RI) if wants_weight else None,
            gradient_RO.sum(0) if wants_bias else None,
        )
