"""Rotary position embedding (arXiv 2104.09864) in the half-rotated form of Llama and Qwen2."""

import torch
from torch import Tensor


def rotary_angles(positions_T: Tensor, head_dim: int, theta: float) -> Tensor:
    """Returns angles TW in fp32: position times theta^(-2i/W), the W/2 frequencies repeated for both halves."""
    exponents = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32) / head_dim
    angles = positions_T[:, None].float() * theta**-exponents
    return torch.cat((angles, angles), dim=-1)


class Rotary:
    """Cosines and sines of a packed sequence's positions, computed once and used by every layer."""

    def __init__(self, positions_T: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype):
        angles_TW = rotary_angles(positions_T, head_dim, theta)
        self.cos_T1W = angles_TW.cos().to(dtype)[:, None]
        self.sin_T1W = angles_TW.sin().to(dtype)[:, None]

    def __call__(self, x_THW: Tensor) -> Tensor:
        """Rotates queries or keys; returns the same shape."""
        first, second = x_THW.chunk(2, dim=-1)
        return x_THW * self.cos_T1W + torch.cat((-second, first), dim=-1) * self.sin_T1W
