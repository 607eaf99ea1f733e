"""The understanding branch's head: next-token logits, and their loss without materialising them."""

from torch import Tensor, nn

from ufork.model.layers.cross_entropy import WHOLE_VOCABULARY, Vocabulary, sum_cross_entropy
from ufork.vocabulary import IGNORED_LABEL


class TextHead(nn.Module):
    """A projection onto the vocabulary; its weight VD may be the token embedding's own (tied)."""

    def __init__(self, weight_VD: nn.Parameter):
        super().__init__()
        self.weight = weight_VD
        self.vocabulary: Vocabulary = WHOLE_VOCABULARY

    def forward(self, hidden_TD: Tensor, labels_T: Tensor) -> Tensor:
        """Sum of cross-entropies over the labelled positions, a scalar in fp32."""
        rows_R = (labels_T != IGNORED_LABEL).nonzero().squeeze(1)
        return sum_cross_entropy(hidden_TD[rows_R], self.weight, None, labels_T[rows_R], self.vocabulary)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits TV, for sampling."""
        return nn.functional.linear(hidden_TD, self.weight)
