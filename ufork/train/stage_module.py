"""What one stage of the Y trains: from a packed row, or the trunk's hidden states, to hidden states or a loss.

    whole        row            -> trunk -> branch -> part of the loss
    trunk        row            -> trunk -> hidden TD
    branch       row, hidden TD ->          branch -> part of the loss

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
    """The parts of the model that a stage holds, with the weights of their losses."""

    def __init__(self, model: UniFork, config: TrainConfig):
        super().__init__()
        self.model = model
        self.losses = nn.ModuleDict({task: TaskLoss(config, Task(task)) for task in model.branches})
        self.anchor: nn.Parameter | None = None

    def add_anchor(self) -> None:
        """Adds a parameter that nothing depends on, for a stage that trains nothing but passes gradients on.

        DeepSpeed runs a backward pass only in an engine that has something to optimize (seen in 0.19.8).
        """
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(
        self, packed: PackedSequence, num_targets: float = 1.0, hidden_TD: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Hidden states TD where no branch is here; else the row's part of the step's loss, and its sum for the log.

        Args:
            packed: one row.
            num_targets: targets of the row's task in the whole job's step.
            hidden_TD: what the trunk made of the row, where the trunk is not here.
        """
        attend = PackedAttention(packed, self.model.kernel)
        if hidden_TD is None:
            assert self.model.trunk
            hidden_TD = self.model.trunk(packed, attend)
        if not self.model.branches:
            return hidden_TD
        total = self.model.branches[packed.task](hidden_TD, packed, attend)
        part = self.losses[packed.task](total, packed.num_targets, num_targets)
        if self.anchor is not None:
            part = part + 0 * self.anchor.sum()
        return part, total.detach()
