"""Numbers that a plan is made from: the model, the packed sequences of a step, and the cost of one in each stage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch

from ufork.model.config import Dimensions, ModelConfig
from ufork.model.cost import SequenceCost, attention_flops, layer_flops_per_token, path_cost
from ufork.model.unifork import UniFork
from ufork.parallel.engine.muon import takes_muon
from ufork.parallel.engine.stage_modules import build_stage_modules, stage_flops
from ufork.parallel.layout import BRANCHES, Stage
from ufork.planning.fused_kernels import UNFUSED, FusedKernels
from ufork.vocabulary import IGNORED_LABEL, PackedSequence, Task

BYTES = {"fp32": 4, "bf16": 2}
Optimizer = Literal["adamw", "muon", "sgd"]
MOMENTS = {"adamw": 2, "muon": 2, "sgd": 0}
"""Values that an optimizer keeps per parameter; Muon keeps one for each of its matrices' entries."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a packed sequence holds, counted as in `PackedSequence`."""

    num_positions: int
    """Image positions."""
    num_targets: int
    """Text tokens or codes to predict."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One phase of a recipe."""

    model: ModelConfig
    dimensions: Dimensions
    global_batch_size: Mapping[Task, int]
    """Packed sequences per step."""
    seq_len: int
    """Tokens of a packed sequence."""
    num_lanes: int
    """Lanes of the data stream (`data.num_lanes`)."""
    precision: str
    """fp32 or bf16."""
    recompute: bool
    """Whether activations are checkpointed."""
    fused: FusedKernels = UNFUSED
    """Operations that are one kernel."""
    segment_tokens: int = 0
    """Tokens of a typical segment, for the attention; 0: the attention is not counted."""
    contents: Mapping[Task, Contents] = field(default_factory=dict)
    """Of a typical packed sequence; by default images end to end, or half image and half answer."""
    optimizer: Optimizer = "adamw"

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight, gradient or activation."""
        return BYTES[self.precision]

    @property
    def tasks(self) -> list[Task]:
        """Tasks with packed sequences."""
        return [task for task, number in self.global_batch_size.items() if number]

    def sequence(self, task: Task) -> PackedSequence:
        """Returns a packed sequence such as `cost` counts: images end to end, or half image and half answer."""
        is_answer_T = torch.arange(self.seq_len) >= self.seq_len // 2
        generates = task is Task.GENERATION
        positions = torch.arange(1, self.seq_len) if generates else (~is_answer_T).nonzero().squeeze(1)[1:]
        none = torch.zeros(0, dtype=torch.long)
        return PackedSequence(
            task=task,
            token_ids_T=torch.zeros(self.seq_len, dtype=torch.long),
            positions_T=torch.arange(self.seq_len),
            segment_starts_S1=torch.tensor([0, self.seq_len], dtype=torch.int32),
            longest_segment=self.seq_len,
            labels_T=torch.where(is_answer_T, 1, IGNORED_LABEL),
            image_positions_I=positions,
            image_begins_M=none,
            image_ends_M=none,
            codes_IC=torch.zeros(len(positions), self.dimensions.codes_per_position, dtype=torch.long),
            num_targets=positions.numel() * self.dimensions.codes_per_position if generates else int(is_answer_T.sum()),
            num_real_tokens=self.seq_len,
            sample_ids=(),
        )

    def cost(self, task: Task) -> SequenceCost:
        """Operations of a packed sequence's forward pass."""
        content = self.content(task)
        return path_cost(
            self.model,
            self.dimensions,
            task,
            lengths=self._segments,
            num_tokens=self.seq_len,
            num_positions=content.num_positions,
            num_predictions=content.num_targets if task is Task.UNDERSTANDING else content.num_positions,
        )

    def content(self, task: Task) -> Contents:
        """What a packed sequence of `task` holds."""
        if task in self.contents:
            return self.contents[task]
        if task is Task.UNDERSTANDING:
            return Contents(num_positions=self.seq_len // 2, num_targets=self.seq_len // 2)
        return Contents(num_positions=self.seq_len, num_targets=self.seq_len * self.dimensions.codes_per_position)

    @property
    def num_segments(self) -> int:
        """Segments of a packed sequence."""
        return self.seq_len // self.segment_tokens if self.segment_tokens else 1

    @property
    def _segments(self) -> list[int]:
        return [self.segment_tokens] * self.num_segments if self.segment_tokens else []

    def forward_flops(self, stage: Stage, task: Task) -> int:
        """Operations of that pass in one stage; 0 if the task does not run through it."""
        return stage_flops(self.cost(task), stage, task)

    def attention_flops(self, stage: Stage, task: Task) -> int:
        """Operations of the attention between tokens in that pass, which `forward_flops` includes."""
        return self.num_layers(stage, task) * attention_flops(self.model.attention_size, self._segments)

    def recomputed_flops(self, stage: Stage, task: Task) -> int:
        """Operations that a backward pass runs again if activations are checkpointed.

        They are the decoder layers' without each layer's last product, whose result no backward pass needs.
        """
        if not self.recompute:
            return 0
        last = 2 * self.model.hidden_size * self.model.intermediate_size
        per_token = layer_flops_per_token(self.model) - last
        return self.num_layers(stage, task) * self.seq_len * per_token + self.attention_flops(stage, task)

    def logits_flops(self, stage: Stage, task: Task) -> int:
        """Operations of the logits' product, which the loss's backward pass runs again."""
        if not self.forward_flops(stage, task) or stage is Stage.TRUNK:
            return 0
        if task is Task.UNDERSTANDING:
            return self.cost(task).head
        rows = self.content(task).num_targets
        return 2 * rows * self.model.rq_head.hidden_size * self.dimensions.codebook_size

    def num_layers(self, stage: Stage, task: Task) -> int:
        """Decoder layers that a packed sequence runs through in one stage."""
        num_layers, num_branch = self.model.path_layers(task), self.model.branch_layers(task)
        layers = {Stage.COLOCATED: num_layers, Stage.TRUNK: num_layers - num_branch, BRANCHES[task]: num_branch}
        return layers.get(stage, 0)

    def num_parameters(self, stage: Stage) -> int:
        """Parameters of a stage."""
        return _num_parameters(self.model, self.dimensions, stage)

    def muon_matrices(self, stage: Stage) -> Sequence[tuple[int, int]]:
        """Returns rows and columns of the matrices of a stage that Muon updates; none with other optimizers."""
        return _inner_matrices(self.model, self.dimensions, stage) if self.optimizer == "muon" else ()

    def num_moments(self, stage: Stage) -> int:
        """Numbers that the optimizer keeps of a stage."""
        return MOMENTS[self.optimizer] * self.num_parameters(stage) - sum(map(math.prod, self.muon_matrices(stage)))

    def ties_head(self, stage: Stage, task: Task) -> bool:
        """Whether one stage has gradients of a weight both as token embedding and as text head, and sums them."""
        return stage is Stage.COLOCATED and task is Task.UNDERSTANDING and self.model.tie_word_embeddings

    def num_path_parameters(self, stage: Stage, task: Task) -> int:
        """Parameters of a stage that get gradients from a sequence of `task`."""
        if stage is not Stage.COLOCATED:
            return self.num_parameters(stage)
        expert = self.model.model_copy(update={"tasks": (task,)})
        return _num_parameters(expert, self.dimensions, stage)


@lru_cache(maxsize=64)
def _num_parameters(model: ModelConfig, dimensions: Dimensions, stage: Stage) -> int:
    return sum(parameter.numel() for parameter in _meta_modules(model, dimensions, stage).parameters())


@lru_cache(maxsize=64)
def _inner_matrices(model: ModelConfig, dimensions: Dimensions, stage: Stage) -> list[tuple[int, int]]:
    parameters = _meta_modules(model, dimensions, stage).named_parameters()
    matrices = [parameter for name, parameter in parameters if takes_muon(name, parameter.dim())]
    return [(matrix.size(0), matrix.size(1)) for matrix in matrices]


def _meta_modules(model: ModelConfig, dimensions: Dimensions, stage: Stage) -> UniFork:
    """The modules of a stage on the meta device, which takes no memory."""
    with torch.device("meta"):
        return build_stage_modules(model, dimensions, stage)
