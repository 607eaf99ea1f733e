"""Dropout with an explicit seed, so that the mask does not depend on the rank that trains a packed sequence."""

import torch
from torch import Tensor, nn

SEED_RANGE = 1 << 63
"""Seeds are taken modulo this, to fit torch's 64-bit generators."""


class SeededDropout(nn.Module):
    """`nn.Dropout` whose mask comes from a generator seeded in each call."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, values: Tensor, seed: int) -> Tensor:
        """Returns the same shape; in eval mode, the values unchanged."""
        if not self.training or not self.share:
            return values
        generator = torch.Generator(values.device).manual_seed(seed % SEED_RANGE)
        kept = torch.rand(values.shape, device=values.device, generator=generator) >= self.share
        return values * kept / (1 - self.share)
