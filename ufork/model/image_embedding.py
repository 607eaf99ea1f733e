"""Input embeddings of images: frozen code embeddings, a projector, and begin- and end-of-image marks.

Both tasks embed images alike (specification of the release, section 4).

Shapes: I image positions, C codes per position, K codebook size, E features of a code, D hidden size, M marks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodeEmbedding(nn.Module):
    """The image tokenizer's codebook, frozen; a buffer, so neither the optimizer nor ZeRO sees it."""

    codebook_KE: Tensor

    def __init__(self, codebook_size: int, code_width: int):
        super().__init__()
        self.register_buffer("codebook_KE", torch.zeros(codebook_size, code_width))

    def forward(self, codes_IC: Tensor) -> Tensor:
        """Returns cumulative sums over the depths, ICE: at depth d, the residual approximation after d + 1 codes."""
        return F.embedding(codes_IC, self.codebook_KE).cumsum(dim=-2)


BEGIN_MARK, END_MARK = 0, 1
"""Rows of the projector's mark embedding."""


class ImageProjector(nn.Module):
    """Two linear layers from code features to the hidden size, and embeddings of begin- and end-of-image marks."""

    def __init__(self, code_width: int, hidden_size: int):
        super().__init__()
        self.first = nn.Linear(code_width, hidden_size)
        self.second = nn.Linear(hidden_size, hidden_size)
        self.marks = nn.Embedding(2, hidden_size)

    def forward(self, features_IE: Tensor, marks_M: Tensor) -> tuple[Tensor, Tensor]:
        """Returns embeddings ID of image positions, and MD of marks."""
        features_IE = features_IE.to(self.first.weight.dtype)  # the codebook stays in fp32
        return self.second(F.gelu(self.first(features_IE))), self.marks(marks_M)
