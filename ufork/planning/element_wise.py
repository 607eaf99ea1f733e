"""What a pass computes between its matrix products: the bytes that element-wise kernels move, and their number.

Coefficients are counted on the real model, run on the meta device (tests/planning/test_element_wise.py): bytes that an
operation reads and writes, for each entry of the tensors that it runs over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from ufork.model.layers.cross_entropy import CHUNK_LOGITS
from ufork.parallel.layout import Stage
from ufork.parallel.schedule.actions import Pass
from ufork.planning.workload import Workload
from ufork.vocabulary import Task


@dataclass(frozen=True, kw_only=True)
class ElementWise:
    """Work of one pass of a packed sequence."""

    num_bytes: int
    """Read and written by everything but matrix products and attention."""
    num_operations: int
    """That the host starts, products included."""


@dataclass(frozen=True, kw_only=True)
class _Moved:
    """Bytes for each entry of a tensor: `always`, and `values` times the bytes of a value."""

    always: float = 0
    values: float = 0

    def of(self, value_bytes: int) -> float:
        return self.always + self.values * value_bytes


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Work of a module, or of an operation of it that is not one kernel, in one direction."""

    hidden: _Moved = _Moved()
    """For each entry of the residual stream."""
    inner: _Moved = _Moved()
    """For each entry of the wide tensor inside, which tensor parallelism partitions: of the MLP, the attention over
    depths, or the logits."""
    query: _Moved = _Moved()
    """For each entry of the queries."""
    key: _Moved = _Moved()
    """For each entry of the keys."""
    num_operations: int = 0


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """How many modules there are, and the entries of their tensors."""

    count: int = 1
    hidden: int = 0
    inner: int = 0
    query: int = 0
    key: int = 0
    chunks: int = 1
    """Of the vocabulary; each has its own operations."""

    @property
    def launches(self) -> int:
        return self.count * self.chunks


_FORWARD, _BACKWARD = Pass.FORWARD, Pass.BACKWARD
LAYER = {
    _FORWARD: _Work(
        hidden=_Moved(values=10),
        inner=_Moved(values=3),
        query=_Moved(values=2),
        key=_Moved(values=2),
        num_operations=14,
    ),
    _BACKWARD: _Work(
        hidden=_Moved(values=21),
        inner=_Moved(values=5),
        query=_Moved(values=2),
        key=_Moved(values=2),
        num_operations=36,
    ),
}
"""A decoder layer of fused kernels: sums of the residual stream, and those kernels."""
BIASES = {
    _FORWARD: _Work(),
    _BACKWARD: _Work(query=_Moved(values=1), key=_Moved(values=2), num_operations=6),
}
"""What its biases add, those of the values with those of the keys."""
QUERY_KEY_NORMS = {
    _FORWARD: _Work(query=_Moved(values=2), key=_Moved(values=2), num_operations=2),
    _BACKWARD: _Work(query=_Moved(values=3), key=_Moved(values=3), num_operations=6),
}
"""What norms of its queries and keys add, as fused kernels."""
QUERY_KEY_NORM_STEPS = {
    _FORWARD: _Work(
        query=_Moved(always=44, values=-6),
        key=_Moved(always=44, values=-6),
        num_operations=14,
    ),
    _BACKWARD: _Work(
        query=_Moved(always=92, values=-3),
        key=_Moved(always=92, values=-3),
        num_operations=30,
    ),
}
"""What these add if they are not fused."""
NORMS = {
    _FORWARD: _Work(hidden=_Moved(always=88, values=-12), num_operations=14),
    _BACKWARD: _Work(hidden=_Moved(always=184, values=-6), num_operations=30),
}
"""What its norms add if they are not fused: they convert to fp32 and back."""
MLP = {
    _FORWARD: _Work(inner=_Moved(values=2), num_operations=1),
    _BACKWARD: _Work(inner=_Moved(values=4), num_operations=2),
}
"""What its MLP adds: the activation is written, read and kept."""
ROTARY = dict.fromkeys(Pass, _Work(query=_Moved(values=8), key=_Moved(values=8), num_operations=9))
"""What its rotary embedding adds, in each direction."""
DEPTH_BLOCK = {
    _FORWARD: _Work(hidden=_Moved(values=18), inner=_Moved(values=4), num_operations=14),
    _BACKWARD: _Work(hidden=_Moved(values=30), inner=_Moved(values=18), num_operations=53),
}
"""A block of the RQ head whose attention is one kernel, without dropout."""
DROPOUT = {
    _FORWARD: _Work(hidden=_Moved(always=20, values=8), num_operations=8),
    _BACKWARD: _Work(hidden=_Moved(always=2, values=8), num_operations=4),
}
DEPTH_ATTENTION = {
    _FORWARD: _Work(inner=_Moved(values=5), num_operations=9),
    _BACKWARD: _Work(inner=_Moved(values=5), num_operations=10),
}
"""What its attention adds as matrix products: copies."""
LOSS = {
    _FORWARD: _Work(inner=_Moved(values=1), num_operations=3),
    _BACKWARD: _Work(inner=_Moved(always=2, values=3), num_operations=5),
}
"""Of the loss, for each logit, and for each chunk of the vocabulary."""
LOSS_STEPS = {
    _FORWARD: _Work(inner=_Moved(always=26, values=1), num_operations=10),
    _BACKWARD: _Work(inner=_Moved(always=18, values=8), num_operations=15),
}
"""What it adds if its work on logits is not fused."""
ENDS_OPERATIONS = 40
"""Of embeddings, projector, rotary angles and last norm."""


def element_wise(workload: Workload, stage: Stage, task: Task, direction: Pass, *, tp: int) -> ElementWise:
    """Returns the work of one pass of a packed sequence of `task` through a replica of `stage`."""
    works = [(work, sizes) for works, sizes in _layers(workload, stage, task, direction) for work in works]
    if stage is not Stage.TRUNK and workload.forward_flops(stage, task):
        works += [(works[direction], sizes) for works, sizes in _head(workload, task)]
    value = workload.value_bytes
    num_bytes = sum(
        sizes.count
        * (
            sizes.hidden * work.hidden.of(value)
            + (sizes.inner * work.inner.of(value) + sizes.query * work.query.of(value) + sizes.key * work.key.of(value))
            / tp
        )
        for work, sizes in works
    )
    if direction is Pass.BACKWARD:  # each parameter's gradient is read, and added to the sum
        num_bytes += 3 * workload.num_path_parameters(stage, task) * value / tp
        num_bytes += _embedding_gradients(workload, stage, task) * value / tp
    return ElementWise(
        num_bytes=int(num_bytes),
        num_operations=ENDS_OPERATIONS + sum(sizes.launches * work.num_operations for work, sizes in works),
    )


def _embedding_gradients(workload: Workload, stage: Stage, task: Task) -> int:
    """Entries that are written for the token embedding's gradient, and read and written to add that of a tied head."""
    if stage not in (Stage.COLOCATED, Stage.TRUNK):
        return 0
    return (4 if workload.ties_head(stage, task) else 1) * workload.dimensions.vocab_size * workload.model.hidden_size


def _layers(workload: Workload, stage: Stage, task: Task, direction: Pass) -> list[tuple[list[_Work], _Sizes]]:
    """Work of the decoder layers; a backward pass recomputes them if activations are checkpointed."""
    model, fused = workload.model, workload.fused
    sizes = _Sizes(
        count=workload.num_layers(stage, task),
        hidden=workload.seq_len * model.hidden_size,
        inner=workload.seq_len * model.intermediate_size,
        query=workload.seq_len * model.attention_size,
        key=workload.seq_len * model.key_value_size,
    )
    steps = [
        (LAYER, True),
        (BIASES, model.attention_bias),
        (QUERY_KEY_NORMS, model.use_qk_norm),
        (QUERY_KEY_NORM_STEPS, model.use_qk_norm and not fused.norms),
        (NORMS, not fused.norms),
        (MLP, not fused.mlp),
        (ROTARY, not fused.rotary),
    ]
    tables = [table for table, is_run in steps if is_run]
    again = [Pass.FORWARD] if workload.recompute and direction is Pass.BACKWARD else []
    return [([table[each] for table in tables], sizes) for each in (direction, *again)]


def _head(workload: Workload, task: Task) -> list[tuple[Mapping[Pass, _Work], _Sizes]]:
    """Work of the head's blocks and of its loss, in both directions."""
    rows = workload.content(task).num_targets
    losses = [LOSS] if workload.fused.loss else [LOSS, LOSS_STEPS]
    if task is Task.UNDERSTANDING:
        logits = _logits(rows, workload.dimensions.vocab_size)
        return [(loss, logits) for loss in losses]
    head = workload.model.rq_head
    blocks = _Sizes(count=head.num_blocks, hidden=rows * head.hidden_size, inner=rows * head.attention_size)
    steps = [(DROPOUT, head.dropout > 0), (DEPTH_ATTENTION, not workload.fused.depth_attention)]
    logits = _logits(rows, workload.dimensions.codebook_size)
    tables = [DEPTH_BLOCK, *(table for table, is_run in steps if is_run)]
    return [*((table, blocks) for table in tables), *((loss, logits) for loss in losses)]


def _logits(rows: int, entries: int) -> _Sizes:
    return _Sizes(inner=rows * entries, chunks=ceil(rows * entries / CHUNK_LOGITS))
