"""The torch module that one stage trains.

    colocated    packed sequence            -> trunk -> branch -> loss term
    trunk        packed sequence            -> trunk -> hidden TD
    branch       packed sequence, hidden TD ->          branch -> loss term

Shapes: T tokens, D width.
"""

import torch
from torch import Tensor, nn

from ufork.model.layers.attention import PackedAttention
from ufork.model.unifork import UniFork
from ufork.train.config import TrainConfig
from ufork.train.objectives.cross_entropy import TaskLoss
from ufork.vocabulary import PackedSequence, Task


class StageModule(nn.Module):
    """The modules of the model that a stage holds, with the learned weights of their losses."""

    def __init__(self, model: UniFork, config: TrainConfig):
        super().__init__()
        self.model = model
        self.losses = nn.ModuleDict({task: TaskLoss(config, Task(task)) for task in model.branches})
        self.anchor: nn.Parameter | None = None

    def add_anchor(self) -> None:
        """Adds a parameter that does not change the loss, for a frozen stage that passes gradients to another.

        DeepSpeed runs backward passes only in an engine that has something to optimize (seen in 0.19.8).
        """
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(
        self, packed: PackedSequence, num_targets: float = 1.0, hidden_TD: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns hidden states TD if the stage has no branch, else the sequence's loss term and its summed loss.

        Args:
            packed: one packed sequence.
            num_targets: targets of the sequence's task in the whole job's step.
            hidden_TD: the trunk's output for the sequence, if the stage has no trunk.
        """
        attend = PackedAttention(packed, self.model.kernel)
        if hidden_TD is None:
            assert self.model.trunk
            hidden_TD = self.model.trunk(packed, attend)
        if not self.model.branches:
            return hidden_TD
        loss = self.losses[packed.task]
        assert isinstance(loss, TaskLoss)
        if loss.fork_gradient:
            loss.fork_gradient.watch(hidden_TD)
        total = self.model.branches[packed.task](hidden_TD, packed, attend)
        term = loss(total, packed.num_targets, num_targets)
        if self.anchor is not None:
            term = term + 0 * self.anchor.sum()
        return term, total.detach()
