"""Bytes that a rank of a stage holds at the fullest moment of a step.

Weights, optimizer and reduced gradients are ZeRO-3's shards; what is gathered, the unreduced gradients and the
activations of rows in flight are whole (over dp; tensor parallelism divides them all).
"""

from dataclasses import dataclass, fields

from ufork.model.layers.cross_entropy import SLICE_ENTRIES
from ufork.parallel.config import REDUCE_BUCKET_NUMBERS, StageShape
from ufork.parallel.layout import BRANCHES, Stage
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

FP32_BYTES = 4
LOGITS_BYTES = 2 * SLICE_ENTRIES * FP32_BYTES
"""The slice of logits held at once, twice in the backward pass."""
LIVE_PARAMETERS = 10**9
"""Gathered numbers that ZeRO-3 keeps for the backward pass (DeepSpeed's stage3_max_reuse_distance)."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes by what they are for."""

    weights: int
    """Shard, in the precision of the passes."""
    optimizer: int
    """Shard of fp32 weights and moments."""
    gradients: int
    """Unreduced until the step's end, and the reduced shard."""
    bucket: int
    """Gradients on their way to the other replicas."""
    gathered: int
    """What other replicas hold shards of, brought together for the passes."""
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
    parameters, value = workload.num_parameters(stage), workload.value_bytes
    shard = -(-parameters // (shape.tp * shape.dp))
    whole = -(-parameters // shape.tp)
    rows = in_flight if stage is Stage.TRUNK else 1
    tasks = [task for task in workload.tasks if workload.forward_flops(stage, task)]
    return RankMemory(
        weights=shard * value,
        optimizer=shard * FP32_BYTES * (1 + workload.moments),
        gradients=shard * value + (0 if reduce_each_backward else whole * value),
        bucket=min(whole, REDUCE_BUCKET_NUMBERS) * value,
        gathered=min(whole, LIVE_PARAMETERS) * value if shape.dp > 1 else 0,
        activations=max(_activations(workload, stage, task, shape.tp, rows) for task in tasks),
        head=max(_head(workload, stage, task, shape.tp) for task in tasks),
    )


def _activations(workload: Workload, stage: Stage, task: Task, tp: int, rows: int) -> int:
    """Bytes kept for the backward passes of `rows` below the head, and of the layer that is computed again."""
    layers, layer = workload.num_layers(stage, task), _layer(workload, tp)
    parts = (Stage.TRUNK, BRANCHES[task]) if stage is Stage.WHOLE else (stage,)
    ends = sum(_ends(workload, part, task) for part in parts)
    if not workload.recompute:
        return rows * (ends + layers * layer)
    inputs = layers * workload.row_tokens * workload.model.width * workload.value_bytes
    return rows * (ends + inputs) + min(layers, 1) * layer


def _ends(workload: Workload, part: Stage, task: Task) -> int:
    """Bytes that trunk or branch keeps of one row outside its layers."""
    width, value, dimensions = workload.model.width, workload.value_bytes, workload.dimensions
    places = workload.row_tokens if task is Task.GENERATION else workload.row_tokens // 2
    features = places * dimensions.codes_per_position * dimensions.code_width * FP32_BYTES
    rotary = workload.row_tokens * 2 * workload.model.head_width * value
    if part is Stage.TRUNK:
        return rotary + features + places * 2 * width * value  # of the projector
    last_norm = workload.row_tokens * width * (FP32_BYTES + value)
    return rotary + last_norm + (features if task is Task.GENERATION else 0)


def _layer(workload: Workload, tp: int) -> int:
    """Bytes that a decoder layer keeps of one row."""
    config, value = workload.model, workload.value_bytes
    norms = 2 * config.width * (FP32_BYTES + value)  # each its input in fp32 and what it scales
    inputs = 2 * config.width * value  # of the first products of attention and MLP
    attention = (3 * config.width + 2 * config.num_kv_heads * config.head_width) * value
    mlp = 4 * config.mlp_width * value
    return workload.row_tokens * (norms + inputs + (attention + mlp) // tp)


def _head(workload: Workload, stage: Stage, task: Task, tp: int) -> int:
    """Bytes of the logits held at once, and of what the RQ head's blocks keep."""
    if stage is Stage.TRUNK:
        return 0
    if task is Task.UNDERSTANDING:
        entries = workload.row_tokens // 2 * workload.dimensions.vocabulary_size * FP32_BYTES // tp
        return min(LOGITS_BYTES, 2 * entries)
    head, predictions = workload.model.rq_head, workload.row_tokens * workload.dimensions.codes_per_position
    block = 4 * head.width + (6 * head.attention_width + 8 * head.width) // tp
    kept = predictions * (head.num_blocks * block + 2 * head.width) * workload.value_bytes
    return kept + min(LOGITS_BYTES, 2 * predictions * workload.dimensions.codebook_size * FP32_BYTES // tp)
