"""Learns the codebook while the tokenizer is fitted: moving averages, and restarts of unused codes.

    residuals that each depth quantized [N, W], their codes [N] -> decayed counts and sums per code
    -> codebook row = sum / count

All depths share one average, as they share the codebook. This state is needed for fitting only and is not stored with
the tokenizer. Moving averages: van den Oord et al., "Neural Discrete Representation Learning" (2017), appendix A.1.
"""

import torch
from torch import Tensor

_FORGOTTEN_BELOW = 1e-6
"""Rows with a smaller count keep their value: count and sum are about to underflow in fp32."""


class CodebookAverage:
    """Moving counts [K] and sums [K, W] of the vectors assigned to each row of `codebook`; updates it in place."""

    def __init__(self, codebook: Tensor, *, decay: float, generator: torch.Generator) -> None:
        self.codebook = codebook
        self.decay = decay
        self.generator = generator
        self.counts = torch.ones(len(codebook), dtype=torch.float32, device=codebook.device)
        self.sums = codebook.clone()

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Moves each row towards the mean of the vectors assigned to it.

        Args:
            vectors: fp32 [..., W], residuals that were quantized, of any depth.
            codes: int64 [...], the row that each was assigned to.
        """
        vectors_NW, codes_N = vectors.reshape(-1, vectors.shape[-1]), codes.reshape(-1)
        counts = torch.bincount(codes_N, minlength=len(self.codebook)).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, codes_N, vectors_NW)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        in_use = self.counts > _FORGOTTEN_BELOW
        self.codebook[in_use] = self.sums[in_use] / self.counts[in_use, None]

    @torch.no_grad()
    def restart(self, vectors: Tensor, *, below_uses: float) -> int:
        """Replaces each row used less than `below_uses` times per step by one of `vectors`, drawn at random.

        Returns:
            Number of rows replaced. Their counts restart at `below_uses`, or at 1 if that is less.
        """
        dead = torch.nonzero(self.counts < below_uses).flatten()
        vectors_NW = vectors.reshape(-1, vectors.shape[-1])
        drawn = torch.randint(len(vectors_NW), (len(dead),), generator=self.generator)
        self._set_rows(dead, vectors_NW[drawn], count=max(below_uses, 1.0))
        return len(dead)

    def _set_rows(self, rows: Tensor, vectors: Tensor, *, count: float) -> None:
        self.codebook[rows] = vectors
        self.counts[rows] = count
        self.sums[rows] = vectors * count
