"""Root-mean-square normalisation (arXiv 1910.07467), computed in fp32 for any input precision.

`rms_norm` is plain torch; `fused_rms_norm` is torch's kernel on CUDA, one instead of eight. Which one a module calls is
decided where the model is built (`ufork/model/kernels.py`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormKernel = Callable[[Tensor, Tensor, float], Tensor]
"""(hidden TD, weight D, eps) -> TD in the dtype of `hidden`."""


def rms_norm(hidden_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Returns `x / sqrt(mean(x^2) + eps) * weight` in `hidden_TD`'s dtype; statistics in fp32."""
    wide_TD = hidden_TD.float()
    scale_T1 = torch.rsqrt(wide_TD.square().mean(-1, keepdim=True) + eps)
    return (wide_TD * scale_T1).to(hidden_TD.dtype) * weight_D


def fused_rms_norm(hidden_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Returns the same by torch's kernel, which rounds to half precision once, after the weight, instead of twice."""
    return F.rms_norm(hidden_TD, weight_D.shape, weight_D, eps)


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension, with a weight."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps
        self.kernel: NormKernel = rms_norm

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Returns a tensor of the shape and dtype of `hidden_TD`."""
        return self.kernel(hidden_TD, self.weight, self.eps)
