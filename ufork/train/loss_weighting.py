"""The loss of a step from the summed losses of its rows, exact for any packing and any number of ranks.

    L = sum over tasks t of  w_t * (sum of cross-entropies of t) / N_t,   N_t the targets of t in the whole job's step

With uncertainty weighting (arXiv 1705.07115, in the form for classification) a log-variance s_t per task is learned:
    L = sum over t of  w_t * exp(-s_t) * mean_t + s_t / 2
A row contributes its share of N_t to both terms, so rows may be summed in any order and on any rank.
"""

import torch
from torch import Tensor, nn

from ufork.model.unifork import UniFork
from ufork.train.config import TrainConfig
from ufork.vocabulary import PackedSequence, Task


class WeightedLoss(nn.Module):
    """A model whose output is its row's part of the step's loss."""

    def __init__(self, model: UniFork, config: TrainConfig):
        super().__init__()
        self.model = model
        self.weights = config.loss_weights
        self.tasks = model.config.tasks
        learned = config.loss_weighting == "uncertainty"
        self.log_variances = nn.Parameter(torch.zeros(len(self.tasks))) if learned else None

    def forward(self, packed: PackedSequence, num_targets: float) -> tuple[Tensor, Tensor]:
        """The row's part of the step's loss, and its sum of cross-entropies for the log.

        Args:
            packed: one row.
            num_targets: N_t of the row's task.
        """
        total = self.model(packed)
        part = self.weights.of(packed.task) * total / num_targets
        if self.log_variances is not None:
            log_variance = self.log_variances[self.tasks.index(packed.task)].float()
            part = part * torch.exp(-log_variance) + log_variance / 2 * (packed.num_targets / num_targets)
        return part, total.detach()


def task_order(num_rows: dict[Task, int]) -> list[Task]:
    """Tasks of a rank's rows in turn, spread evenly: the same on every rank, so that all gather the same weights."""
    places = [((row + 0.5) / number, task) for task, number in num_rows.items() for row in range(number)]
    return [task for _, task in sorted(places)]
