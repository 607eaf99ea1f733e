"""Peak memory of a rank in a step.

    workload, stage, shape -> bytes of weights, optimizer, gradients, gathered weights, activations, head -> RankMemory

Weights, optimizer and reduced gradients are sharded over dp x tp; gathered weights, unreduced gradients and the
activations of sequences in flight are partitioned over tp only. The peak is that of tensors, as
`torch.cuda.max_memory_allocated` reports it: fragmentation of the allocator's blocks comes on top of it.
"""

import math
from dataclasses import dataclass

from ufork.model.layers.cross_entropy import CHUNK_LOGITS
from ufork.parallel.config import REDUCE_BUCKET_NUMBERS, LayoutConfig, StageShape
from ufork.parallel.layout import BRANCHES, Stage
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

FP32_BYTES = 4
LIVE_PARAMETERS = 10**9
"""Gathered parameters that ZeRO-3 keeps for the backward pass (DeepSpeed's stage3_max_reuse_distance)."""
PREFETCHED_PARAMETERS = 5 * 10**7
"""Parameters that ZeRO-3 gathers ahead of their use, if it could not keep all (stage3_prefetch_bucket_size)."""
UPDATED_PARAMETERS = 10**9
"""Parameters of a shard that ZeRO-3 updates at a time (DeepSpeed's sub_group_size)."""
MUON_COPIES, MUON_COPIES_EXCHANGED = 2, 4
"""Copies of Muon's matrices during its update, on one rank and on several; one more if their precision is not fp32."""
FLASH_QUERIES = 128
"""Queries to which FlashAttention's backward pass rounds up each segment's."""
CONTEXT_BYTES = 500_000_000
"""Of CUDA's context with the loaded kernels, which torch's allocator does not know; assumed."""
NCCL_CONNECTION_BYTES = (1 << 22) + (1 << 19) + 120 * 640 * 8 * 8
"""Buffers of one NCCL connection, for its three protocols (nccl's src/init.cc, defaults)."""
NCCL_CONNECTIONS = 32
"""Connections of a group's communicator: 16 channels, in a ring and a tree; assumed."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes by purpose."""

    weights: int
    """Shard, in the precision of the passes."""
    optimizer: int
    """Shard of fp32 weights and moments."""
    gradients: int
    """Reduced shard."""
    bucket: int
    """Buffer of gradients that are being reduced."""
    unreduced: int
    """Gradients of the whole stage until the step's end."""
    whole: int
    """Weights that each of several replicas keeps whole, beside its shard."""
    gathered: int
    """Weights gathered from other replicas for the passes, of stages too large to keep them."""
    activations: int
    """Activations of the sequences between their forward and backward pass."""
    head: int
    """Logits of the loss, and the head's activations."""
    reduction: int
    """Copies of the gradients in the bucket, while they are reduced."""
    update: int
    """Copies of gradients in fp32, and of Muon's matrices, while the optimizer updates the weights."""
    outside: int
    """What CUDA and NCCL take beside torch's allocator."""

    @property
    def at_peak(self) -> dict[str, int]:
        """The purposes for which most bytes are held at a time: in a step's passes, its reduction or its update."""
        times = (
            ("unreduced", "gathered", "activations", "head"),
            ("unreduced", "reduction"),
            ("update",),
        )
        fullest = max(times, key=lambda names: sum(getattr(self, name) for name in names))
        return {
            name: getattr(self, name) for name in ("weights", "whole", "optimizer", "gradients", "bucket", *fullest)
        }

    @property
    def total(self) -> int:
        """Most bytes of tensors at any time of a step."""
        return sum(self.at_peak.values())

    @property
    def pinned_host(self) -> int:
        """Page-locked memory of the host that the rank's checkpoints pass through."""
        return self.weights + self.optimizer


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
    num_ranks = shape.tp * shape.dp
    shard = -(-parameters // num_ranks)
    whole = -(-parameters // shape.tp)
    sequences = in_flight if stage is Stage.TRUNK else 1
    activations, head = max(
        (
            _in_passes(workload, stage, task, shape.tp, sequences)
            for task in workload.tasks
            if workload.forward_flops(stage, task)
        ),
        key=sum,
    )
    keeps_weights = LayoutConfig(reduce_each_backward=reduce_each_backward).keeps_weights(whole, shape.dp)
    reduces = shape.dp > 1  # else autograd adds to ZeRO's shard itself
    bucket = min(whole, REDUCE_BUCKET_NUMBERS) * value if reduces else 0
    joined = value if value < FP32_BYTES else 0  # gradients are joined in their own precision first
    updated = min(shard, UPDATED_PARAMETERS)
    groups = (shape.dp > 1) + (shape.tp > 1)
    return RankMemory(
        weights=shard * value,
        optimizer=(shard - (-workload.num_moments(stage) // num_ranks)) * FP32_BYTES,
        gradients=shard * value,
        bucket=bucket,
        unreduced=whole * value if reduces and not reduce_each_backward else 0,
        whole=whole * value if reduces and keeps_weights else 0,
        gathered=0 if keeps_weights else min(whole, LIVE_PARAMETERS + PREFETCHED_PARAMETERS) * value,
        activations=activations,
        head=head,
        reduction=bucket,
        update=updated * FP32_BYTES + max(updated * joined, _matrices(workload, stage, num_ranks)),
        outside=CONTEXT_BYTES + groups * NCCL_CONNECTIONS * NCCL_CONNECTION_BYTES,
    )


def _matrices(workload: Workload, stage: Stage, num_ranks: int) -> int:
    """Bytes of a rank's share of Muon's matrices while they are exchanged and orthogonalized."""
    copies = (MUON_COPIES if num_ranks == 1 else MUON_COPIES_EXCHANGED) + (workload.value_bytes < FP32_BYTES)
    return copies * sum(map(math.prod, workload.muon_matrices(stage))) // num_ranks * workload.value_bytes


def _in_passes(workload: Workload, stage: Stage, task: Task, tp: int, sequences: int) -> tuple[int, int]:
    """Bytes of activations and of the head when most are held: in the backward pass of loss, layer or embedding."""
    layers, layer = workload.num_layers(stage, task), _layer(workload, tp)
    stages = (Stage.TRUNK, BRANCHES[task]) if stage is Stage.COLOCATED else (stage,)
    ends = sum(_ends(workload, stage, task) for stage in stages)
    inputs = workload.seq_len * workload.model.hidden_size * workload.value_bytes
    kept = sequences * (ends + layers * (inputs if workload.recompute else layer))
    recomputed = layer if workload.recompute and layers else 0
    tied = _weight_gradient(workload, task, tp) if workload.ties_head(stage, task) else 0  # until the embedding's
    in_layer = (kept + recomputed + max(_mlp_gradients(workload, tp), _attention_gradients(workload, tp)), tied)
    in_embedding = (kept - kept // sequences, _embedding_gradients(workload, stage, task))
    return max((kept, _head(workload, stage, task, tp)), in_layer, in_embedding, key=sum)


def _embedding_gradients(workload: Workload, stage: Stage, task: Task) -> int:
    """Bytes of the token embedding's gradient; with a tied head there are the gradients of both, and their sum."""
    if stage not in (Stage.COLOCATED, Stage.TRUNK):
        return 0
    copies = 3 if workload.ties_head(stage, task) else 1
    return copies * workload.dimensions.vocab_size * workload.model.hidden_size * workload.value_bytes


def _ends(workload: Workload, stage: Stage, task: Task) -> int:
    """Bytes that trunk or branch keeps of one sequence outside its layers."""
    hidden_size, value, dimensions = workload.model.hidden_size, workload.value_bytes, workload.dimensions
    positions = workload.content(task).num_positions
    features = positions * dimensions.codes_per_position * dimensions.code_width * FP32_BYTES
    rotary = workload.seq_len * 2 * workload.model.head_dim * value
    if stage is Stage.TRUNK:
        return rotary + features + positions * 2 * hidden_size * value  # the last are the projector's
    last_norm = workload.seq_len * hidden_size * (_norm(workload) + value)
    return rotary + last_norm + (features if task is Task.GENERATION else 0)


def _norm(workload: Workload) -> int:
    """Bytes that a norm keeps for each entry: its input, or that in fp32 and the normalised values."""
    return workload.value_bytes if workload.fused.norms else FP32_BYTES + workload.value_bytes


def _layer(workload: Workload, tp: int) -> int:
    """Bytes that a decoder layer keeps of one sequence."""
    config, value = workload.model, workload.value_bytes
    norms = 2 * config.hidden_size * _norm(workload)
    inputs = 2 * config.hidden_size * value  # of the first products of attention and MLP
    log_sums = config.num_attention_heads * FP32_BYTES
    attention = 2 * (config.attention_size + config.key_value_size) * value + log_sums
    if config.use_qk_norm:
        attention += (config.attention_size + config.key_value_size) * _norm(workload)
    mlp = (3 if workload.fused.mlp else 4) * config.intermediate_size * value
    return workload.seq_len * (norms + inputs + (attention + mlp) // tp)


def _mlp_gradients(workload: Workload, tp: int) -> int:
    """Bytes that the backward pass of a layer's MLP holds beside what is kept."""
    config = workload.model
    return workload.seq_len * (config.hidden_size + 2 * config.intermediate_size // tp) * workload.value_bytes


def _attention_gradients(workload: Workload, tp: int) -> int:
    """Bytes that the backward pass of FlashAttention holds beside what is kept.

    It sums the queries' gradients in fp32, of each segment's queries rounded up to 128 and of heads to 32 features, and
    has gradients of keys and values for every query head (pytorch's aten/native/transformers/cuda/flash_attn/
    flash_api.cpp).
    """
    config, value = workload.model, workload.value_bytes
    queries = workload.seq_len + FLASH_QUERIES * workload.num_segments
    features = -(-config.head_dim // 32) * 32
    sums = queries * config.num_attention_heads * (features + 1) * FP32_BYTES
    return (sums + workload.seq_len * 4 * config.attention_size * value) // tp


def _head(workload: Workload, stage: Stage, task: Task, tp: int) -> int:
    """Bytes of the logits held at once, and of what the RQ head's blocks keep."""
    if stage is Stage.TRUNK:
        return 0
    value, gradient = workload.value_bytes, _weight_gradient(workload, task, tp)
    predictions = workload.content(task).num_targets
    if task is Task.UNDERSTANDING:
        return gradient + _logits(workload, predictions * workload.dimensions.vocab_size // tp)
    head = workload.model.rq_head
    masks = 2 if head.dropout else 0
    block = (4 * value + masks) * head.hidden_size + (6 * head.attention_size + 8 * head.hidden_size) * value // tp
    kept = predictions * (head.num_blocks * block + 2 * head.hidden_size * value)
    in_loss = gradient + _logits(workload, predictions * workload.dimensions.codebook_size // tp)
    in_block = predictions * 6 * head.hidden_size * value
    return kept + max(in_loss, in_block)


def _logits(workload: Workload, entries: int) -> int:
    """Bytes of a chunk of logits and their errors, of those of the chunk before, and of steps between them in fp32."""
    value = workload.value_bytes
    return min(CHUNK_LOGITS, entries) * (3 * value if workload.fused.loss else 2 * value + 2 * FP32_BYTES)


def _weight_gradient(workload: Workload, task: Task, tp: int) -> int:
    """Bytes of the gradient of the logits' weight."""
    text = task is Task.UNDERSTANDING
    rows = workload.dimensions.vocab_size if text else workload.dimensions.codebook_size
    width = workload.model.hidden_size if text else workload.model.rq_head.hidden_size
    return rows * width * workload.value_bytes // tp
