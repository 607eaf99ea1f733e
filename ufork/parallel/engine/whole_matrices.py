"""Matrices that are sharded over all ranks of a stage, made whole on one rank each, and sharded again.

    shards of all matrices, on every rank -> gather -> each rank's share of the matrices, whole
    shards of all matrices, on every rank <- scatter <- each rank's share of the matrices, whole

ZeRO-3 flattens a rank's tp shard of a matrix, pads it and cuts it into dp equal pieces. One all-to-all over the stage
brings the pieces of a matrix to the rank that works on it, and another one takes the result back, so that a rank sends
and receives about as much as it holds, and no work is done twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class MatrixShard:
    """One matrix as a rank holds it before ZeRO flattens it."""

    shape: tuple[int, int]
    """Rows and columns; of this rank's tp shard under tensor parallelism."""
    partition_dim: int | None = None
    """Dimension along which the matrix is partitioned over the tp ranks; None if every rank holds all of it."""

    def whole_shape(self, tp: int) -> tuple[int, int]:
        """Returns rows and columns of the whole matrix."""
        rows, columns = (size * tp if dim == self.partition_dim else size for dim, size in enumerate(self.shape))
        return rows, columns


class WholeMatrices:
    """The matrices of one of ZeRO's flat tensors, in its order.

    Attributes:
        sizes: numbers of each matrix in the flat tensor, padding included.
        shapes: rows and columns of each whole matrix.
    """

    def __init__(self, shards: Sequence[MatrixShard], *, tp: int = 1, group: dist.ProcessGroup | None = None):
        """Divides the matrices among the ranks.

        Args:
            shards: the matrices.
            tp: tp ranks of each replica.
            group: the ranks of the stage, replica by replica; None for one rank.
        """
        self._shards, self._tp, self._group = shards, tp, group
        num_ranks = group.size() if group else 1
        self._dp = num_ranks // tp
        self.sizes = [-(-math.prod(shard.shape) // self._dp) for shard in shards]
        self.shapes = [shard.whole_shape(tp) for shard in shards]
        by_rank = _divide([math.prod(shape) * min(shape) for shape in self.shapes], num_ranks)
        self._own, self._order = by_rank[group.rank() if group else 0], list(chain(*by_rank))
        self._share_sizes = [sum(self.sizes[index] for index in indices) for indices in by_rank]

    def gather(self, flat: Tensor) -> list[Tensor]:
        """Returns this rank's share of the matrices, whole; all ranks of the stage must call."""
        shards = flat.split(self.sizes)
        if not self._group:
            return [shard.view(shape) for shard, shape in zip(shards, self.shapes, strict=True)]
        own_sizes = [self.sizes[index] for index in self._own]
        received = self._exchange(
            torch.cat([shards[index] for index in self._order]),
            self._share_sizes,
            [sum(own_sizes)] * len(self._share_sizes),
        )
        by_matrix = received.view(len(self._share_sizes), sum(own_sizes)).split(own_sizes, dim=1)
        return [self._join(index, shards) for index, shards in zip(self._own, by_matrix, strict=True)]

    def scatter(self, matrices: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """Returns this rank's flat shard of every matrix; all ranks of the stage must call.

        Args:
            matrices: those that `gather` returned here, changed.
            like: a tensor of their dtype and device, if there are none.
        """
        if not self._group:
            return [matrix.flatten() for matrix in matrices]
        cut = [self._cut(index, matrix) for index, matrix in zip(self._own, matrices, strict=True)]
        by_rank = torch.cat([like.new_empty(len(self._share_sizes), 0), *cut], dim=1)
        received = self._exchange(by_rank.flatten(), [by_rank.size(1)] * len(by_rank), self._share_sizes)
        shards = received.split([self.sizes[index] for index in self._order])
        in_order = dict(zip(self._order, shards, strict=True))
        return [in_order[index] for index in range(len(self._shards))]

    def _exchange(self, sent: Tensor, sent_sizes: Sequence[int], received_sizes: Sequence[int]) -> Tensor:
        """Sends consecutive numbers to each rank, and returns those from each; sizes are by rank."""
        received = sent.new_empty(sum(received_sizes))
        dist.all_to_all_single(received, sent, list(received_sizes), list(sent_sizes), group=self._group)
        return received

    def _join(self, index: int, shards: Tensor) -> Tensor:
        """The whole matrix from the shards of all ranks, one row each."""
        shard = self._shards[index]
        by_tp_rank = shards.view(self._dp, self._tp, -1).transpose(0, 1).flatten(1)
        tp_shards = [flat[: math.prod(shard.shape)].view(shard.shape) for flat in by_tp_rank]
        return tp_shards[0] if shard.partition_dim is None else torch.cat(tp_shards, dim=shard.partition_dim)

    def _cut(self, index: int, matrix: Tensor) -> Tensor:
        """The shards of all ranks, one row each, of a whole matrix."""
        shard = self._shards[index]
        if shard.partition_dim is None:
            tp_shards: Sequence[Tensor] = [matrix] * self._tp
        else:
            tp_shards = matrix.chunk(self._tp, dim=shard.partition_dim)
        by_tp_rank = torch.stack([tp_shard.flatten() for tp_shard in tp_shards])
        padding = self._dp * self.sizes[index] - by_tp_rank.size(1)
        padded = torch.nn.functional.pad(by_tp_rank, (0, padding))
        return padded.view(self._tp, self._dp, -1).transpose(0, 1).flatten(0, 1)


def _divide(costs: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Indices by rank: the most costly first, each to the rank that has least to do."""
    by_rank: list[list[int]] = [[] for _ in range(num_ranks)]
    totals = [0] * num_ranks
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        rank = totals.index(min(totals))
        by_rank[rank].append(index)
        totals[rank] += costs[index]
    return by_rank
