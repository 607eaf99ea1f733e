"""Peak memory of a rank in a step.

    workload, stage, shape -> bytes of weights, optimizer, gradients, gathered weights, activations, head -> RankMemory

Weights, optimizer and reduced gradients are sharded over dp x tp; gathered weights, unreduced gradients and the
activations of sequences in flight are partitioned over tp only.
"""

from dataclasses import dataclass, fields

from ufork.model.layers.cross_entropy import CHUNK_LOGITS
from ufork.parallel.config import REDUCE_BUCKET_NUMBERS, StageShape
from ufork.parallel.layout import BRANCHES, Stage
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

FP32_BYTES = 4
LOGITS_BYTES = 2 * CHUNK_LOGITS * FP32_BYTES
"""The chunk of logits held at once, twice in the backward pass."""
LIVE_PARAMETERS = 10**9
"""Gathered parameters that ZeRO-3 keeps for the backward pass (DeepSpeed's stage3_max_reuse_distance)."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes by purpose."""

    weights: int
    """Shard, in the precision of the passes."""
    optimizer: int
    """Shard of fp32 weights and moments."""
    gradients: int
    """Unreduced until the step's end, and the reduced shard."""
    bucket: int
    """Buffer of gradients that are being reduced."""
    gathered: int
    """Weights gathered from other replicas for the passes."""
    activations: int
    """Activations of the sequences between their forward and backward pass."""
    head: int
    """Logits of the loss, and the head's activations."""

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(getattr(self, field.name) for field in fields(self))


def rank_memory(
    workload: Workload, stage: Stage, shape: StageShape, *, in_flight: int = 1, reduce_each_backward: bool = False
) -> RankMemory:
    """Returns the peak memory of each rank of `stage`.

    Args:
        workload: what is trained.
        stage: the stage.
        shape: its dp and tp.
        in_flight: sequences in flight of a trunk replica; other stages keep one.
        reduce_each_backward: as in `LayoutConfig`.
    """
    parameters, value = workload.num_parameters(stage), workload.value_bytes
    shard = -(-parameters // (shape.tp * shape.dp))
    whole = -(-parameters // shape.tp)
    sequences = in_flight if stage is Stage.TRUNK else 1
    tasks = [task for task in workload.tasks if workload.forward_flops(stage, task)]
    return RankMemory(
        weights=shard * value,
        optimizer=shard * FP32_BYTES * (1 + workload.moments),
        gradients=shard * value + (0 if reduce_each_backward else whole * value),
        bucket=min(whole, REDUCE_BUCKET_NUMBERS) * value,
        gathered=min(whole, LIVE_PARAMETERS) * value if shape.dp > 1 else 0,
        activations=max(_activations(workload, stage, task, shape.tp, sequences) for task in tasks),
        head=max(_head(workload, stage, task, shape.tp) for task in tasks),
    )


def _activations(workload: Workload, stage: Stage, task: Task, tp: int, sequences: int) -> int:
    """Bytes that `sequences` keep below the head for their backward passes, and of the layer being recomputed."""
    layers, layer = workload.num_layers(stage, task), _layer(workload, tp)
    stages = (Stage.TRUNK, BRANCHES[task]) if stage is Stage.COLOCATED else (stage,)
    ends = sum(_ends(workload, stage, task) for stage in stages)
    if not workload.recompute:
        return sequences * (ends + layers * layer)
    inputs = layers * workload.seq_len * workload.model.hidden_size * workload.value_bytes
    return sequences * (ends + inputs) + min(layers, 1) * layer


def _ends(workload: Workload, stage: Stage, task: Task) -> int:
    """Bytes that trunk or branch keeps of one sequence outside its layers."""
    hidden_size, value, dimensions = workload.model.hidden_size, workload.value_bytes, workload.dimensions
    positions = workload.seq_len if task is Task.GENERATION else workload.seq_len // 2
    features = positions * dimensions.codes_per_position * dimensions.code_width * FP32_BYTES
    rotary = workload.seq_len * 2 * workload.model.head_dim * value
    if stage is Stage.TRUNK:
        return rotary + features + positions * 2 * hidden_size * value  # the last are the projector's
    last_norm = workload.seq_len * hidden_size * (FP32_BYTES + value)
    return rotary + last_norm + (features if task is Task.GENERATION else 0)


def _layer(workload: Workload, tp: int) -> int:
    """Bytes that a decoder layer keeps of one sequence."""
    config, value = workload.model, workload.value_bytes
    norms = 2 * config.hidden_size * (FP32_BYTES + value)  # of each, its input in fp32 and the normalised values
    inputs = 2 * config.hidden_size * value  # of the first products of attention and MLP
    attention = (3 * config.hidden_size + 2 * config.num_key_value_heads * config.head_dim) * value
    mlp = 4 * config.intermediate_size * value
    return workload.seq_len * (norms + inputs + (attention + mlp) // tp)


def _head(workload: Workload, stage: Stage, task: Task, tp: int) -> int:
    """Bytes of the logits held at once, and of what the RQ head's blocks keep."""
    if stage is Stage.TRUNK:
        return 0
    if task is Task.UNDERSTANDING:
        entries = workload.seq_len // 2 * workload.dimensions.vocab_size * FP32_BYTES // tp
        return min(LOGITS_BYTES, 2 * entries)
    head, predictions = workload.model.rq_head, workload.seq_len * workload.dimensions.codes_per_position
    block = 4 * head.hidden_size + (6 * head.attention_size + 8 * head.hidden_size) // tp
    kept = predictions * (head.num_blocks * block + 2 * head.hidden_size) * workload.value_bytes
    return kept + min(LOGITS_BYTES, 2 * predictions * workload.dimensions.codebook_size * FP32_BYTES // tp)
