"""A head's vocabulary spread over ranks: each computes its rows' logits, and only sums of them travel.

Shapes: R rows to predict.
"""

import torch.distributed as dist
from torch import Tensor


class VocabularySlice:
    """`ufork.model.layers.cross_entropy.Vocabulary` of a weight that holds the rows from `first_row` on."""

    def __init__(self, group: dist.ProcessGroup, first_row: int):
        self.group, self.first_row = group, first_row

    def log_add(self, log_sum_R: Tensor) -> Tensor:
        """log(sum(exp)) over the ranks, relative to the largest so that nothing overflows."""
        largest_R = log_sum_R.clone()
        dist.all_reduce(largest_R, op=dist.ReduceOp.MAX, group=self.group)
        return largest_R + self.add((log_sum_R - largest_R).exp()).log()

    def add(self, values: Tensor) -> Tensor:
        """Sum over the ranks."""
        values = values.contiguous()
        dist.all_reduce(values, group=self.group)
        return values
