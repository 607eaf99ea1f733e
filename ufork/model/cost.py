"""Floating-point operations of the model's matrix products, counted from its sizes and a packed row.

A product of [m, k] and [k, n] counts 2 m k n. Element-wise work is left out, so figures compare with the
rate of a GEMM. Attention counts the causal half. A backward pass costs twice its forward pass.
"""

from dataclasses import dataclass

from ufork.model.config import Dimensions, ModelConfig
from ufork.vocabulary import PackedSequence, Task

BACKWARD_OVER_FORWARD = 2


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """Forward operations of one packed row, by where they happen."""

    trunk: int
    branch: int
    head: int

    @property
    def forward(self) -> int:
        """All of it."""
        return self.trunk + self.branch + self.head

    @property
    def training(self) -> int:
        """Forward and backward."""
        return self.forward * (1 + BACKWARD_OVER_FORWARD)


def row_cost(config: ModelConfig, dimensions: Dimensions, row: PackedSequence) -> RowCost:
    """Operations of `row` on its task's path; padding is computed and therefore counted."""
    num_positions = len(row.image_positions_I)
    num_predictions = row.num_targets if row.task is Task.UNDERSTANDING else num_positions
    lengths = row.segment_starts_S1.diff().tolist()
    return path_cost(
        config, dimensions, row.task, lengths=lengths, num_positions=num_positions, num_predictions=num_predictions
    )


def nominal_cost(config: ModelConfig, dimensions: Dimensions, task: Task, *, row_tokens: int) -> RowCost:
    """Operations of a row before one is seen: full of images for generation, half of it answers for understanding."""
    generates = task is Task.GENERATION
    return path_cost(
        config,
        dimensions,
        task,
        lengths=[],
        num_tokens=row_tokens,
        num_positions=row_tokens if generates else row_tokens // 2,
        num_predictions=row_tokens if generates else row_tokens // 2,
    )


def path_cost(
    config: ModelConfig,
    dimensions: Dimensions,
    task: Task,
    *,
    lengths: list[int],
    num_positions: int,
    num_predictions: int,
    num_tokens: int | None = None,
) -> RowCost:
    """Operations on a task's path.

    Args:
        config: sizes of the model.
        dimensions: sizes that the tokenizers decide.
        task: whose path.
        lengths: tokens of each segment, for the attention.
        num_positions: image positions, which the projector embeds.
        num_predictions: text tokens, or image positions, that the head predicts.
        num_tokens: of the row; the sum of `lengths` unless given.
    """
    num_tokens = sum(lengths) if num_tokens is None else num_tokens
    layer = num_tokens * layer_flops_per_token(config) + attention_flops(config.width, lengths)
    projector = 2 * num_positions * config.width * (dimensions.code_width + config.width)
    if task is Task.UNDERSTANDING:
        head = 2 * num_predictions * config.width * dimensions.vocabulary_size
    else:
        head = num_predictions * rq_head_flops_per_position(config, dimensions)
    return RowCost(trunk=config.trunk_layers * layer + projector, branch=config.branch_layers(task) * layer, head=head)


def layer_flops_per_token(config: ModelConfig) -> int:
    """The projections of one decoder layer."""
    key_width = config.num_kv_heads * config.head_width
    return 2 * config.width * (2 * config.width + 2 * key_width + 3 * config.mlp_width)


def attention_flops(width: int, lengths: list[int]) -> int:
    """Scores and mixing of one layer over segments of `lengths` tokens."""
    return sum(2 * width * length * (length + 1) for length in lengths)


def rq_head_flops_per_position(config: ModelConfig, dimensions: Dimensions) -> int:
    """All depths of one image position."""
    head, depth = config.rq_head, dimensions.codes_per_position
    attention = 2 * head.width * head.attention_width + 4 * head.attention_width**2
    block = 2 * (attention + 8 * head.width**2) * depth + attention_flops(head.attention_width, [depth])
    inputs = 2 * head.width * (config.width + (depth - 1) * dimensions.code_width)
    return inputs + head.num_blocks * block + 2 * depth * head.width * dimensions.codebook_size
