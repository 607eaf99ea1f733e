"""Conversions between images and patches, and between bytes and the values that networks see.

Shapes: B images, H x W pixels, R x S grid of patches, P values of a patch (3 per pixel), N distinct patches.
"""

import numpy as np
import torch
from torch import Tensor


def to_patches(images: Tensor, patch_px: int) -> Tensor:
    """Cuts `images` [B, H, W, 3] into patches [B, R, S, P]."""
    batch, height, width, channels = images.shape
    split = images.reshape(batch, height // patch_px, patch_px, width // patch_px, patch_px, channels)
    return split.transpose(2, 3).flatten(3)


def to_images(patches: Tensor, patch_px: int) -> Tensor:
    """Joins `patches` [B, R, S, P] to images [B, H, W, 3]."""
    batch, rows, columns, _ = patches.shape
    split = patches.reshape(batch, rows, columns, patch_px, patch_px, -1)
    return split.transpose(2, 3).reshape(batch, rows * patch_px, columns * patch_px, -1)


def from_bytes(values: Tensor) -> Tensor:
    """Converts uint8 values to fp32 in -1..1."""
    return values.float() / 127.5 - 1


def to_bytes(values: Tensor) -> Tensor:
    """Converts values in -1..1 to uint8; rounds, and clamps values outside."""
    return ((values.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def distinct(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the distinct patches among uint8 `patches` [..., P], by a 64-bit hash.

    Returns:
        The distinct patches [N, P], and the index of each patch among them, int64 [...].
    """
    flat = patches.flatten(0, -2).cpu()
    factors = torch.randint(-(2**62), 2**62, flat.shape[-1:], generator=torch.Generator().manual_seed(0))
    hashes = (flat.long() * factors).sum(dim=-1).numpy()  # wraps around
    _, first, number = np.unique(hashes, return_index=True, return_inverse=True)
    return flat[torch.from_numpy(first)].to(patches.device), torch.from_numpy(number.reshape(patches.shape[:-1]))
