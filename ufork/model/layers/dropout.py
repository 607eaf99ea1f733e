"""Dropout whose choice follows from a seed, so that it is the same on whatever rank a row is trained."""

import torch
from torch import Tensor, nn

SEED_RANGE = 1 << 63
"""Seeds are taken modulo this: torch's generators want 64 bits."""


class SeededDropout(nn.Module):
    """As `nn.Dropout`, the mask drawn from a generator of its own."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, values: Tensor, seed: int) -> Tensor:
        """Same shape; outside of training the values themselves."""
        if not self.training or not self.share:
            return values
        generator = torch.Generator(values.device).manual_seed(seed % SEED_RANGE)
        kept = torch.rand(values.shape, device=values.device, generator=generator) >= self.share
        return values * kept / (1 - self.share)
