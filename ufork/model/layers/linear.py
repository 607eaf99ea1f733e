"""Linear layers whose fp32 products on a CPU run in oneDNN instead of torch's default, MKL.

With AVX-512, oneDNN is faster: 407 against 111 to 179 GFLOP/s at 2048 x 256 x 1024 on two cores of an AMD EPYC
with AVX512-BF16 (`python -m benchmarks.gemm`). With AVX2 only they are equal, and torch's backward pass needs no
transposed copies. In bf16 torch calls oneDNN already, and on a GPU there is no choice.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LinearKernel = Literal["torch", "onednn"]
"""Library of matrix products. Results differ by rounding; name one to reproduce a run bit for bit on another CPU."""


def default_linear(device: torch.device, dtype: torch.dtype) -> LinearKernel:
    """Returns what `train.linear=auto` stands for: oneDNN for fp32 on a CPU with AVX-512, torch otherwise."""
    has_choice = device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return "onednn" if has_choice and torch.backends.cpu.get_cpu_capability() == "AVX512" else "torch"


def use_linear(model: nn.Module, kernel: LinearKernel) -> None:
    """Switches the `nn.Linear` layers of `model` to `kernel`, in place."""
    for module in model.modules():
        if kernel == "onednn" and type(module) is nn.Linear:
            module.__class__ = OneDnnLinear


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in fp32 on the CPU, with oneDNN forward and backward."""

    def forward(self, values: Tensor) -> Tensor:
        """Maps [..., inputs] to [..., outputs]."""
        if not values.numel():  # oneDNN rejects empty operands, which a packed sequence without images produces
            return super().forward(values)
        return _OneDnnLinear.apply(values.flatten(0, -2), self.weight, self.bias).unflatten(0, values.shape[:-1])


def onednn_product(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Returns x weight^T + bias, RO."""
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
