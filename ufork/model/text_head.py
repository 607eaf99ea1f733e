"""The understanding branch's head: next-token loss without materialised logits, and logits for sampling.

Shapes: T tokens, R labelled tokens, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor, nn

from ufork.model.layers.cross_entropy import PLAIN_CHUNKS, WHOLE_VOCABULARY, Vocabulary, sum_cross_entropy
from ufork.model.layers.linear import TORCH_PRODUCTS
from ufork.vocabulary import IGNORED_LABEL


class TextHead(nn.Module):
    """A projection onto the vocabulary; its weight VD may be that of the token embedding (tied)."""

    def __init__(self, weight_VD: nn.Parameter):
        super().__init__()
        self.weight = weight_VD
        self.vocabulary: Vocabulary = WHOLE_VOCABULARY
        self.chunk_kernels = PLAIN_CHUNKS
        self.products = TORCH_PRODUCTS

    def forward(self, hidden_TD: Tensor, labels_T: Tensor, num_labelled: int) -> Tensor:
        """Returns the sum of cross-entropies over the labelled positions, a scalar in fp32.

        `num_labelled` is their number, which the host would otherwise have to wait for on a GPU.
        """
        labelled_R = torch.nonzero_static(labels_T != IGNORED_LABEL, size=num_labelled).squeeze(1)
        states_RD, targets_R = hidden_TD.index_select(0, labelled_R), labels_T.index_select(0, labelled_R)
        return sum_cross_entropy(
            states_RD, self.weight, None, targets_R, self.vocabulary, self.chunk_kernels, self.products
        )

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Returns logits TV."""
        return nn.functional.linear(hidden_TD, self.weight)
