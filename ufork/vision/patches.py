"""Images cut into patches and put together again, in bytes or in the values that networks see.

Shapes: B images, H x W pixels, R x S grid of patches, P values of a patch (3 per pixel).
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
    """Lays `patches` [B, R, S, P] side by side: images [B, H, W, 3]."""
    batch, rows, columns, _ = patches.shape
    split = patches.reshape(batch, rows, columns, patch_px, patch_px, -1)
    return split.transpose(2, 3).reshape(batch, rows * patch_px, columns * patch_px, -1)


def from_bytes(values: Tensor) -> Tensor:
    """uint8 values as fp32 in -1..1."""
    return values.float() / 127.5 - 1


def to_bytes(values: Tensor) -> Tensor:
    """Values about -1..1 as uint8, rounded and clamped."""
    return ((values.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def distinct(patches: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones of uint8 `patches` [..., P], told apart by a 64-bit hash.

    Returns:
        Them [N, P], and for each patch its number among them, int64 [...].
    """
    flat = patches.flatten(0, -2).cpu()
    factors = torch.randint(-(2**62), 2**62, flat.shape[-1:], generator=torch.Generator().manual_seed(0))
    hashes = (flat.long() * factors).sum(dim=-1).numpy()  # wraps around
    _, first, number = np.unique(hashes, return_index=True, return_inverse=True)
    return flat[torch.from_numpy(first)].to(patches.device), torch.from_numpy(number.reshape(patches.shape[:-1]))
