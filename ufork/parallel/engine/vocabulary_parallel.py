"""A head's vocabulary partitioned over ranks: each computes the logits of its rows, and only their sums are sent.

Shapes: R tokens to predict.
"""

import torch.distributed as dist
from torch import Tensor


class VocabularyShard:
    """Implements `ufork.model.layers.cross_entropy.Vocabulary` for a weight with the rows from `first_row` on."""

    def __init__(self, group: dist.ProcessGroup, first_row: int):
        self.group, self.first_row = group, first_row

    def log_add(self, log_sum_R: Tensor) -> Tensor:
        """Returns log(sum(exp(log_sum_R))) over the ranks, computed relative to the largest to avoid overflow."""
        largest_R = log_sum_R.clone()
        dist.all_reduce(largest_R, op=dist.ReduceOp.MAX, group=self.group)
        return largest_R + self.add((log_sum_R - largest_R).exp()).log()

    def add(self, values: Tensor) -> Tensor:
        """Returns the sum of `values` over the ranks."""
        values = values.contiguous()
        dist.all_reduce(values, group=self.group)
        return values
