"""Root-mean-square normalisation (arXiv 1910.07467), computed in fp32 for any input precision.

NVIDIA apex's fused kernel is used on CUDA tensors where the genuine apex is installed (`apex.py`).
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ufork.model.layers.apex import RMS_NORM, find_apex_kernel

log = logging.getLogger(__name__)


@functools.cache
def find_apex_rms_norm() -> Callable[[Tensor, Tensor, torch.Size, float], Tensor] | None:
    """Returns NVIDIA apex's `fused_rms_norm_affine`, or None (see `find_apex_kernel`); cached."""
    if kernel := find_apex_kernel(RMS_NORM):
        log.info("RMSNorm: NVIDIA apex's fused kernel")
    return kernel


def rms_norm(hidden_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Returns `x / sqrt(mean(x^2) + eps) * weight` in `hidden_TD`'s dtype; statistics in fp32."""
    if hidden_TD.is_cuda and (fused := find_apex_rms_norm()):
        return fused(hidden_TD, weight_D, weight_D.shape, eps)
    wide_TD = hidden_TD.float()
    scale_T1 = torch.rsqrt(wide_TD.square().mean(-1, keepdim=True) + eps)
    return (wide_TD * scale_T1).to(hidden_TD.dtype) * weight_D


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension, with a weight."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Returns a tensor of the shape and dtype of `hidden_TD`."""
        return rms_norm(hidden_TD, self.weight, self.eps)
