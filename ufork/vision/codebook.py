"""How a codebook is learned while the tokenizer is fitted: running averages, and restarts of codes that nobody uses.

    what each depth quantized [N, W], the codes it chose [N] -> decayed counts and sums per code -> row = sum / count

One average for all depths, since they share the codebook. This state belongs to fitting and is not stored with the
tokenizer. Moving averages: van den Oord et al., "Neural Discrete Representation Learning" (2017), appendix A.1.
"""

import torch
from torch import Tensor

_FORGOTTEN_BELOW = 1e-6
"""A running count under which a row keeps its place: count and sum are about to vanish in fp32."""


class CodebookAverage:
    """Running counts [K] and sums [K, W] of the vectors that chose each row of `codebook`, which it overwrites."""

    def __init__(self, codebook: Tensor, *, decay: float, generator: torch.Generator) -> None:
        self.codebook = codebook
        self.decay = decay
        self.generator = generator
        self.counts = torch.ones(len(codebook), dtype=torch.float32, device=codebook.device)
        self.sums = codebook.clone()

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Moves each row towards the mean of the vectors that chose it.

        Args:
            vectors: fp32 [..., W], what was quantized, at any depth.
            codes: int64 [...], the row that each chose.
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
        """Puts each row used less than `below_uses` times per step onto one of `vectors`, drawn at random.

        Returns:
            How many rows were moved. Each restarts with `below_uses` counts, or 1 if that is less.
        """
        dead = torch.nonzero(self.counts < below_uses).flatten()
        vectors_NW = vectors.reshape(-1, vectors.shape[-1])
        drawn = torch.randint(len(vectors_NW), (len(dead),), generator=self.generator)
        self._place(dead, vectors_NW[drawn], count=max(below_uses, 1.0))
        return len(dead)

    def _place(self, rows: Tensor, vectors: Tensor, *, count: float) -> None:
        self.codebook[rows] = vectors
        self.counts[rows] = count
        self.sums[rows] = vectors * count
