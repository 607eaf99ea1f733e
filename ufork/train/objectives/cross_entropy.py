"""The loss of a step from the summed losses of its packed sequences, exact for any packing and number of ranks.

    L = sum over tasks t of  w_t * (sum of cross-entropies of t) / N_t,   N_t the targets of t in the whole job's step

With uncertainty weighting (arXiv 1705.07115, in the form for classification) a log-variance s_t per task is learned:
    L = sum over t of  w_t * exp(-s_t) * mean_t + s_t / 2
A sequence contributes its share of N_t to both terms, so sequences may be summed in any order and on any rank.

With `gradnorm` the first term has another factor, which changes from step to step (`gradnorm.py`).
"""

import torch
from torch import Tensor, nn

from ufork.train.config import TrainConfig
from ufork.train.objectives.gradnorm import ForkGradient
from ufork.vocabulary import Task


class TaskLoss(nn.Module):
    """Loss terms of the packed sequences of one task.

    Attributes:
        factor: factor besides the configured weight, for the next pass; 1 unless `gradnorm` sets it.
        fork_gradient: the task's gradients at the fork; None unless `gradnorm` needs them.
    """

    def __init__(self, config: TrainConfig, task: Task):
        super().__init__()
        self.weight = config.loss_weights.of(task)
        learned = config.loss_weighting == "uncertainty"
        self.log_variance = nn.Parameter(torch.zeros(1)) if learned else None
        self.factor = 1.0
        self.fork_gradient = ForkGradient() if config.balances_gradients else None

    def forward(self, total: Tensor, sequence_targets: int, num_targets: float) -> Tensor:
        """Returns the sequence's term of the step's loss.

        Args:
            total: sum of the sequence's cross-entropies, a scalar.
            sequence_targets: number of targets in the sequence.
            num_targets: N_t.
        """
        term = self.weight * self.factor * total / num_targets
        if self.log_variance is not None:
            log_variance = self.log_variance.float().squeeze(0)
            term = term * torch.exp(-log_variance) + log_variance / 2 * (sequence_targets / num_targets)
        return term
