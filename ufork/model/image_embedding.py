"""Codes of the image tokenizer as inputs of the body: frozen embeddings, a projector, and the marks around an image.

Both tasks see an image in the same way (spec of the release, section 4).

Shapes: I image positions, C codes per position, K codebook size, E features of a code, D width, M marks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodeEmbedding(nn.Module):
    """The tokenizer's codebook, frozen: a buffer, so that neither optimizer nor ZeRO touches it."""

    codebook_KE: Tensor

    def __init__(self, codebook_size: int, code_width: int):
        super().__init__()
        self.register_buffer("codebook_KE", torch.zeros(codebook_size, code_width))

    def forward(self, codes_IC: Tensor) -> Tensor:
        """Sums over the depths up to each one, ICE: at depth d the residual approximation after d + 1 codes."""
        return F.embedding(codes_IC, self.codebook_KE).cumsum(dim=-2)


BEGIN_MARK, END_MARK = 0, 1
"""Rows of the projector's mark embedding."""


class ImageProjector(nn.Module):
    """Two linear layers from code features to the body's width, and embeddings of begin- and end-of-image."""

    def __init__(self, code_width: int, width: int):
        super().__init__()
        self.first = nn.Linear(code_width, width)
        self.second = nn.Linear(width, width)
        self.marks = nn.Embedding(2, width)

    def forward(self, features_IE: Tensor, marks_M: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ID of image positions, and MD of marks given by their number."""
        features_IE = features_IE.to(self.first.weight.dtype)  # the codebook stays in fp32
        return self.second(F.gelu(self.first(features_IE))), self.marks(marks_M)
