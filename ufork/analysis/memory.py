"""Bytes that a rank of a stage holds at the fullest moment of a step.

Weights, optimizer and reduced gradients are ZeRO-3's shards; what is gathered, the unreduced gradients and the
activations of rows in flight are whole (over dp; tensor parallelism divides them all).
"""

from dataclasses import dataclass, fields

from ufork.analysis.workload import Workload
from ufork.model.cross_entropy import SLICE_ENTRIES
from ufork.parallel.config import StageShape
from ufork.parallel.layout import Stage
from ufork.vocabulary import Task

FP32_BYTES = 4
LOGITS_BYTES = 2 * SLICE_ENTRIES * FP32_BYTES
"""The slice of logits held at once, twice in the backward pass."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes by what they are for."""

    weights: int
    """Shard, in the precision of the passes."""
    optimizer: int
    """Shard of fp32 weights and moments."""
    gradients: int
    """Unreduced until the step's end, and the reduced shard."""
    gathered: int
    """The module at work and the one that is fetched meanwhile."""
    activations: int
    """Of the rows between their forward and backward pass."""
    head: int
    """Logits of the loss, and the head's activations."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def rank_memory(
    workload: Workload, stage: Stage, shape: StageShape, *, in_flight: int = 1, reduce_each_backward: bool = False
) -> RankMemory:
    """What each rank of `stage` holds.

    Args:
        workload: what is trained.
        stage: whose rank.
        shape: the stage's.
        in_flight: rows that a trunk replica keeps; the other stages keep one.
        reduce_each_backward: as in the layout's config.
    """
    parameters, value = workload.parameters(stage), workload.value_bytes
    shard = -(-parameters.total // (shape.tp * shape.dp))
    whole = -(-parameters.total // shape.tp)
    rows = in_flight if stage is Stage.TRUNK else 1
    tasks = [task for task in Task if workload.forward_flops(stage, task)]
    return RankMemory(
        weights=shard * value,
        optimizer=shard * FP32_BYTES * (1 + workload.moments),
        gradients=shard * value + (0 if reduce_each_backward else whole * value),
        gathered=2 * parameters.largest_fetched * value // shape.tp,
        activations=rows * max(row_activations(workload, stage, task, shape.tp) for task in tasks),
        head=max(_head(workload, stage, task, shape.tp) for task in tasks),
    )


def row_activations(workload: Workload, stage: Stage, task: Task, tp: int) -> int:
    """Bytes that a row's decoder layers keep for their backward pass on one rank."""
    config, tokens, layers = workload.model, workload.row_tokens, workload.num_layers(stage, task)
    keys = config.num_kv_heads * config.head_width
    replicated = 2 * config.width * (workload.value_bytes + FP32_BYTES)  # inputs of the norms, and in fp32
    divided = (3 * config.width + 3 * keys + 4 * config.mlp_width) * workload.value_bytes
    layer = tokens * (replicated + divided // tp)
    if not workload.recompute:
        return layers * layer
    return layers * tokens * config.width * workload.value_bytes + layer * min(layers, 1)


def _head(workload: Workload, stage: Stage, task: Task, tp: int) -> int:
    if stage is Stage.TRUNK:
        return 0
    if task is Task.UNDERSTANDING:
        entries = workload.row_tokens * workload.dimensions.vocabulary_size * FP32_BYTES // tp
        return min(LOGITS_BYTES, 2 * entries)
    head, depths = workload.model.rq_head, workload.dimensions.codes_per_position
    per_depth = 6 * head.attention_width // tp + 4 * head.width * (1 + 4 // tp)
    kept = workload.row_tokens * depths * head.num_blocks * per_depth * workload.value_bytes
    entries = workload.row_tokens * depths * workload.dimensions.codebook_size * FP32_BYTES // tp
    return kept + min(LOGITS_BYTES, 2 * entries)
