"""Rotary position embedding (arXiv 2104.09864) in the half-rotated form of Llama and Qwen2."""

from collections.abc import Callable

import torch
from torch import Tensor

RotaryKernel = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(query THW, key TGW, cosines TW, sines TW) -> rotated queries and keys."""


def rotary_angles(positions_T: Tensor, head_dim: int, theta: float) -> Tensor:
    """Returns angles TW in fp32: position times theta^(-2i/W), the W/2 frequencies repeated for both halves."""
    exponents = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32) / head_dim
    angles = positions_T[:, None].float() * theta**-exponents
    return torch.cat((angles, angles), dim=-1)


def rotate(query_THW: Tensor, key_TGW: Tensor, cos_TW: Tensor, sin_TW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rotated queries and keys, of the same shapes."""
    return rotated(query_THW, cos_TW[:, None], sin_TW[:, None]), rotated(key_TGW, cos_TW[:, None], sin_TW[:, None])


def rotated(x_THW: Tensor, cos_T1W: Tensor, sin_T1W: Tensor) -> Tensor:
    """Returns rotated queries or keys, THW."""
    first, second = x_THW.chunk(2, dim=-1)
    return x_THW * cos_T1W + torch.cat((-second, first), dim=-1) * sin_T1W


class Rotary:
    """Cosines and sines of a packed sequence's positions, computed once and used by every layer."""

    def __init__(
        self, positions_T: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype, kernel: RotaryKernel = rotate
    ):
        angles_TW = rotary_angles(positions_T, head_dim, theta)
        self.cos_TW, self.sin_TW = angles_TW.cos().to(dtype), angles_TW.sin().to(dtype)
        self.kernel = kernel

    def __call__(self, query_THW: Tensor, key_TGW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns rotated queries and keys; they may take the place of the arguments."""
        return self.kernel(query_THW, key_TGW, self.cos_TW, self.sin_TW)
