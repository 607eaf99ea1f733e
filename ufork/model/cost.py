"""Floating-point operations of the model's matrix products, counted from its sizes and a packed sequence.

A product of [m, k] and [k, n] counts 2 m k n. Element-wise operations are not counted, so figures are
comparable to a GEMM rate. Attention counts the causal half. A backward pass costs twice its forward pass.
"""

from dataclasses import dataclass

from ufork.model.config import Dimensions, ModelConfig
from ufork.vocabulary import PackedSequence, Task

BACKWARD_OVER_FORWARD = 2


@dataclass(frozen=True, kw_only=True)
class SequenceCost:
    """Forward operations of one packed sequence, by module."""

    trunk: int
    branch: int
    head: int

    @property
    def forward(self) -> int:
        """Operations of the whole forward pass."""
        return self.trunk + self.branch + self.head

    @property
    def training(self) -> int:
        """Operations of forward plus backward pass."""
        return self.forward * (1 + BACKWARD_OVER_FORWARD)


def sequence_cost(config: ModelConfig, dimensions: Dimensions, sequence: PackedSequence) -> SequenceCost:
    """Counts the operations of `sequence` on its task's path; padding is computed and therefore counted."""
    num_positions = len(sequence.image_positions_I)
    num_predictions = sequence.num_targets if sequence.task is Task.UNDERSTANDING else num_positions
    lengths = sequence.segment_starts_S1.diff().tolist()
    return path_cost(
        config, dimensions, sequence.task, lengths=lengths, num_positions=num_positions, num_predictions=num_predictions
    )


def nominal_cost(config: ModelConfig, dimensions: Dimensions, task: Task, *, seq_len: int) -> SequenceCost:
    """Estimates a packed sequence's operations: all of it images (generation), or half of it answers (else)."""
    generates = task is Task.GENERATION
    return path_cost(
        config,
        dimensions,
        task,
        lengths=[],
        num_tokens=seq_len,
        num_positions=seq_len if generates else seq_len // 2,
        num_predictions=seq_len if generates else seq_len // 2,
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
) -> SequenceCost:
    """Counts the operations on a task's path.

    Args:
        config: sizes of the model.
        dimensions: sizes that the tokenizers decide.
        task: selects the branch.
        lengths: tokens of each segment, for the attention.
        num_positions: image positions, which the projector embeds.
        num_predictions: text tokens, or image positions, that the head predicts.
        num_tokens: length of the packed sequence; default: the sum of `lengths`.
    """
    num_tokens = sum(lengths) if num_tokens is None else num_tokens
    layer = num_tokens * layer_flops_per_token(config) + attention_flops(config.attention_size, lengths)
    projector = 2 * num_positions * config.hidden_size * (dimensions.code_width + config.hidden_size)
    if task is Task.UNDERSTANDING:
        head = 2 * num_predictions * config.hidden_size * dimensions.vocab_size
    else:
        head = num_predictions * rq_head_flops_per_position(config, dimensions)
    num_branch = config.branch_layers(task)
    num_trunk = config.path_layers(task) - num_branch
    return SequenceCost(trunk=num_trunk * layer + projector, branch=num_branch * layer, head=head)


def layer_flops_per_token(config: ModelConfig) -> int:
    """Counts the projections of one decoder layer."""
    outputs = 2 * config.attention_size + 2 * config.key_value_size + 3 * config.intermediate_size
    return 2 * config.hidden_size * outputs


def attention_flops(attention_size: int, lengths: list[int]) -> int:
    """Counts scores and weighted sums of one layer, over segments of `lengths` tokens and all heads."""
    return sum(2 * attention_size * length * (length + 1) for length in lengths)


def rq_head_flops_per_position(config: ModelConfig, dimensions: Dimensions) -> int:
    """Counts all depths of one image position."""
    head, depth = config.rq_head, dimensions.codes_per_position
    attention = 2 * head.hidden_size * head.attention_size + 4 * head.attention_size**2
    block = 2 * (attention + 8 * head.hidden_size**2) * depth + attention_flops(head.attention_size, [depth])
    inputs = 2 * head.hidden_size * (config.hidden_size + (depth - 1) * dimensions.code_width)
    return inputs + head.num_blocks * block + 2 * depth * head.hidden_size * dimensions.codebook_size
