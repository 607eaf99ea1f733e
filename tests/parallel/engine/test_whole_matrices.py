"""Sharded matrices: each is whole on one rank, and every rank gets its shards of the results."""

import math

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from ufork.parallel.engine.whole_matrices import MatrixShard, WholeMatrices
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import World, join_world

WHOLE = [((4, 6), 0), ((3, 5), None), ((6, 4), 1), ((8, 2), 0), ((2, 2), None)]
"""Shapes, and the dimension that is partitioned over tp ranks."""


def matrix(number: int) -> torch.Tensor:
    """Different numbers in all matrices; whole numbers, which bf16 holds."""
    shape, _ = WHOLE[number]
    return torch.arange(math.prod(shape)).view(shape).float() + 32 * number


def tp_shard(number: int, tp: int, tp_rank: int) -> torch.Tensor:
    _, dim = WHOLE[number]
    return matrix(number) if dim is None or tp == 1 else matrix(number).chunk(tp, dim)[tp_rank]


def zero_shard(flat: torch.Tensor, dp: int, dp_rank: int) -> torch.Tensor:
    size = -(-len(flat) // dp)
    return torch.nn.functional.pad(flat, (0, size * dp - len(flat)))[dp_rank * size : (dp_rank + 1) * size]


def gather_and_scatter(rank_env: RankEnvironment, tp: int, num_matrices: int, dtype: torch.dtype):
    """Returns the whole matrices of this rank, and whether the shards of their doubles are this rank's, doubled."""
    with join_world(rank_env, timeout_seconds=60) as world:
        return _gather_and_scatter(world, tp, num_matrices, dtype)


def _gather_and_scatter(world: World, tp: int, num_matrices: int, dtype: torch.dtype):
    dp, numbers = world.size // tp, range(num_matrices)
    dp_rank, tp_rank = divmod(world.rank, tp)
    shards = [tp_shard(number, tp, tp_rank) for number in numbers]
    dims = [WHOLE[number][1] if tp > 1 else None for number in numbers]
    group = dist.group.WORLD if world.size > 1 else None
    described = [MatrixShard(tuple(shard.shape), dim) for shard, dim in zip(shards, dims, strict=True)]
    whole = WholeMatrices(described, tp=tp, group=group)
    assert whole.shapes == [WHOLE[number][0] for number in numbers]
    flat = torch.cat([zero_shard(shard.flatten(), dp, dp_rank) for shard in shards]).to(dtype)
    own = whole.gather(flat)
    doubled = torch.cat(whole.scatter([2 * each for each in own], like=flat))
    return own, torch.equal(doubled, 2 * flat)


CASES = {
    "one rank": (1, 1, 5, torch.float32),
    "dp 3": (3, 1, 5, torch.float32),
    "tp 2": (2, 2, 5, torch.float32),
    "tp 2 dp 2": (4, 2, 5, torch.bfloat16),
    "fewer matrices than ranks": (4, 2, 1, torch.float32),
}


@pytest.mark.parametrize("name", CASES)
def test_each_matrix_is_whole_on_one_rank_and_its_shards_return(name):
    num_ranks, tp, num_matrices, dtype = CASES[name]
    outcomes = run_on_ranks(gather_and_scatter, num_ranks, tp, num_matrices, dtype)
    assert all(returned for _, returned in outcomes)
    gathered = sorted((each.float() for own, _ in outcomes for each in own), key=lambda each: float(each.flatten()[0]))
    expected = [matrix(number) for number in range(num_matrices)]
    assert len(gathered) == num_matrices and all(map(torch.equal, gathered, expected))
    if num_matrices >= num_ranks:
        assert all(own for own, _ in outcomes), "every rank has work"
