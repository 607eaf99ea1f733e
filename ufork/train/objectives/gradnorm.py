"""Loss weighting by gradient norms: factors of the tasks' losses that keep the norms of their gradients in proportion.

After GradNorm (Chen et al., arXiv 1711.02257). L_t is the mean loss of task t, w_t its weight in `train.loss_weights`,
f_t its factor, and G_t the norm of the gradient of w_t f_t L_t. After each step, with L_t(0) of the first step:

    f_t  <-  f_t * (w_t * (L_t / L_t(0))^alpha / G_t)^rate,    then scaled so that the factors' mean is 1

At rest G_t is in proportion to w_t (L_t / L_t(0))^alpha, which is the paper's target if all w_t are equal.

Two things differ from the paper:
- G_t is the norm of the gradient of the task's hidden states at the fork, over all tokens of the step, and not of the
  last shared layer's weights. A step adds both tasks' gradients of weights into one buffer, which ZeRO shards; those of
  hidden states are there for each task and in every layout. MGDA-UB (arXiv 1810.04650) and RotoGrad (arXiv 2103.02631)
  balance gradients of the shared representation, too.
- The paper moves the factors by an optimizer's step on sum_t |G_t - target_t|. The rule above goes to the same point,
  and does not depend on the scale of the gradients.

The factors are numbers of the train state, and the same on all ranks, since L_t and G_t are the whole job's.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ufork.checkpoint.state import LossBalance
from ufork.train.config import TrainConfig
from ufork.vocabulary import Task


class ForkGradient:
    """Sums the squared norms of a task's gradients at the fork, over the packed sequences of a step on this rank."""

    def __init__(self) -> None:
        self._squared_norms: list[Tensor] = []

    def watch(self, hidden_TD: Tensor) -> None:
        """Counts the gradient that a backward pass is going to compute for `hidden_TD`."""
        if hidden_TD.requires_grad:
            hidden_TD.register_hook(self._add)

    def _add(self, gradient_TD: Tensor) -> None:
        norm = torch.linalg.vector_norm(gradient_TD, dtype=torch.float32)
        self._squared_norms.append(norm.double().square())

    def take(self, device: torch.device) -> Tensor:
        """Returns the sum since the last call, a scalar in fp64 on `device`, that of the gradients."""
        squared_norms, self._squared_norms = self._squared_norms, []
        return (
            torch.stack(squared_norms).sum() if squared_norms else torch.zeros((), dtype=torch.float64, device=device)
        )


def rebalanced(
    balance: LossBalance, config: TrainConfig, *, losses: Mapping[Task, float], norms: Mapping[Task, float]
) -> LossBalance:
    """Returns the balance for the next step.

    A step in which a task has no loss or no gradient, as without a target, changes nothing.

    Args:
        balance: of the step that was taken.
        config: of the phase.
        losses: L_t of that step, over the whole job.
        norms: G_t of that step; empty unless the losses are weighted by gradient norms.
    """
    if not norms or not all(0 < figure < math.inf for figure in (*losses.values(), *norms.values())):
        return balance
    first_losses = balance.first_losses or dict(losses)
    alpha, rate = config.gradnorm.alpha, config.gradnorm.rate
    moved = {}
    for task, norm in norms.items():
        wanted = config.loss_weights.of(task) * (losses[task] / first_losses[task]) ** alpha
        moved[task] = balance.factor(task) * (wanted / norm) ** rate
    scale = len(moved) / sum(moved.values())
    return LossBalance(factors={task: factor * scale for task, factor in moved.items()}, first_losses=first_losses)
