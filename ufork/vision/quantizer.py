"""Residual quantization: represents a vector by C codes of one shared codebook, coarse to fine.

    features [..., W] -> for each depth: the row nearest to the residual -> codes [..., C]
    codes [..., C] -> sum of their rows -> features [..., W]

Lee et al., "Autoregressive Image Generation using Residual Quantization" (2022), as VILA-U and UniFork use it.
The codebook is a buffer, so no optimizer and no forward pass changes it; only `codebook.CodebookAverage` does, while
fitting.

Shapes: K rows of the codebook, W their width, C codes per position, N vectors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Result of quantizing features [..., W]."""

    codes: Tensor
    """int64 [..., C]."""
    features: Tensor
    """fp32 [..., W], sum of the codes' rows; its gradient passes straight through to the quantizer's input."""
    commitment: Tensor
    """fp32 scalar: mean square error of the sum of the first d rows, averaged over d = 1..C."""
    residuals: Tensor
    """fp32 [..., C, W], detached: the residual that each depth quantized."""


class ResidualQuantizer(nn.Module):
    """Quantizes residuals `codes_per_position` times with one codebook, in fp32 even under autocast."""

    codebook: Tensor

    def __init__(self, *, codebook_size: int, code_width: int, codes_per_position: int) -> None:
        super().__init__()
        self.codes_per_position = codes_per_position
        codebook = torch.empty(codebook_size, code_width, dtype=torch.float32)
        self.register_buffer("codebook", nn.init.normal_(codebook))  # unlike randn, skipped WithoutInitialization

    def forward(self, features: Tensor) -> Quantized:
        """Quantizes `features` [..., W]."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            codes, residuals = self._nearest(features.detach().reshape(-1, features.shape[-1]))
            residuals = residuals.reshape(*features.shape[:-1], *residuals.shape[1:])
            codes = codes.reshape(*features.shape[:-1], self.codes_per_position)
            steps = nn.functional.embedding(codes, self.codebook)
            sums = steps.cumsum(dim=-2)  # [..., C, W]
            commitment = (features.unsqueeze(-2) - sums).square().mean()
            straight_through = features + (sums[..., -1, :] - features).detach()
        return Quantized(codes=codes, features=straight_through, commitment=commitment, residuals=residuals)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Returns the codes, int64 [..., C], of `features` [..., W]."""
        codes, _ = self._nearest(features.float().reshape(-1, features.shape[-1]))
        return codes.reshape(*features.shape[:-1], self.codes_per_position)

    def embed(self, codes: Tensor) -> Tensor:
        """Returns the sum of the rows of `codes` [..., C]: fp32 [..., W]. Fewer than C codes give a coarser sum."""
        return nn.functional.embedding(codes, self.codebook).sum(dim=-2)

    @torch.no_grad()
    def _nearest(self, residual_NW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the codes [N, C] and the residual that each depth quantized [N, C, W]."""
        with torch.autocast(residual_NW.device.type, enabled=False):
            squares_K = self.codebook.square().sum(dim=1)
            codes, residuals = [], []
            for _ in range(self.codes_per_position):
                # |r - e|^2 without |r|^2, which is the same for every row
                distances_NK = torch.addmm(squares_K, residual_NW, self.codebook.T, alpha=-2)
                codes_N = distances_NK.argmin(dim=1)
                codes.append(codes_N)
                residuals.append(residual_NW)
                residual_NW = residual_NW - self.codebook[codes_N]
        return torch.stack(codes, dim=1), torch.stack(residuals, dim=1)
