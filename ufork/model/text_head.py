"""The understanding branch's head: next-token loss without materialised logits, and logits for sampling."""

from torch import Tensor, nn

from ufork.model.layers.cross_entropy import WHOLE_VOCABULARY, Vocabulary, sum_cross_entropy
from ufork.vocabulary import IGNORED_LABEL


class TextHead(nn.Module):
    """A projection onto the vocabulary; its weight VD may be that of the token embedding (tied)."""

    def __init__(self, weight_VD: nn.Parameter):
        super().__init__()
        self.weight = weight_VD
        self.vocabulary: Vocabulary = WHOLE_VOCABULARY

    def forward(self, hidden_TD: Tensor, labels_T: Tensor) -> Tensor:
        """Returns the sum of cross-entropies over the labelled positions, a scalar in fp32."""
        labelled_R = (labels_T != IGNORED_LABEL).nonzero().squeeze(1)
        return sum_cross_entropy(hidden_TD[labelled_R], self.weight, None, labels_T[labelled_R], self.vocabulary)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Returns logits TV."""
        return nn.functional.linear(hidden_TD, self.weight)
