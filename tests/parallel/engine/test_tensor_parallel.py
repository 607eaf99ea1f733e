"""A model partitioned over ranks computes what the whole one does: values, losses and every gradient."""

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from tests.tiny import QWEN3, packed_sequence, tiny_config, tiny_model
from ufork.errors import ConfigError
from ufork.model.layers.attention import PackedAttention
from ufork.model.unifork import UniFork
from ufork.parallel.config import LayoutConfig
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.vocabulary import Task

CONFIG = tiny_config(num_key_value_heads=4)


def whole_model(tied: bool, **changes) -> UniFork:
    return tiny_model(tiny_config(num_key_value_heads=4, tie_word_embeddings=tied, **changes))


def sequences():
    return [packed_sequence(task, texts=[[5, 6, 7, 8], [9, 10, 250]], seq_len=32) for task in Task]


def gradients(model: UniFork) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def joined(tp_shard: torch.Tensor, dim: int | None, group: dist.ProcessGroup) -> torch.Tensor:
    if dim is None:
        return tp_shard
    tp_shards = [torch.empty_like(tp_shard) for _ in range(group.size())]
    dist.all_gather(tp_shards, tp_shard.contiguous(), group=group)
    return torch.cat(tp_shards, dim)


def run_partitioned(rank_env: RankEnvironment, tied: bool, changes: dict):
    """Losses of both tasks, all gradients, and all weights of the partitioned model, joined."""
    from ufork.parallel.engine.tensor_parallel import apply_tensor_parallel

    torch.set_num_threads(1)
    with join_world(rank_env, LayoutConfig(colocated_tp=rank_env.world_size), timeout_seconds=60) as world:
        model = whole_model(tied, **changes)
        dims = apply_tensor_parallel(model, world.tp_group)
        losses = [model(sequence) for sequence in sequences()]
        sum(losses).backward()
        weights = {name: joined(p.detach(), dims.get(name), world.tp_group) for name, p in model.named_parameters()}
        found = {name: joined(g, dims.get(name), world.tp_group) for name, g in gradients(model).items()}
        return [float(loss) for loss in losses], found, weights, dims


@pytest.fixture(
    scope="module",
    params=[
        (2, True, {}),
        (2, True, QWEN3),
        pytest.param((2, False, {}), marks=pytest.mark.slow),
        pytest.param((4, True, {}), marks=pytest.mark.slow),
    ],
    ids=["tp2 tied", "tp2 tied, Qwen3", "tp2", "tp4 tied"],
)
def partitioned(request):
    tp, tied, changes = request.param
    return whole_model(tied, **changes), run_on_ranks(run_partitioned, tp, tied, changes)


def test_losses_and_gradients_are_those_of_the_whole_model(partitioned):
    whole, by_rank = partitioned
    losses = [whole(sequence) for sequence in sequences()]
    sum(losses).backward()
    for found_losses, found, _, _ in by_rank:
        assert found_losses == pytest.approx([float(loss.detach()) for loss in losses], rel=1e-6)
        assert found.keys() == gradients(whole).keys()
        for name, gradient in gradients(whole).items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    whole.zero_grad()


def test_joined_tp_shards_are_the_whole_weights(partitioned):
    whole, by_rank = partitioned
    for _, _, weights, dims in by_rank:
        assert all(torch.equal(weights[name], parameter) for name, parameter in whole.named_parameters())
        num_sharded = sum(weights[name].numel() for name in dims)
        assert num_sharded > 0.6 * sum(weight.numel() for weight in weights.values()), "most weights are partitioned"


def run_by_tokens(rank_env: RankEnvironment):
    """A trunk under sequence parallelism: its joined hidden states, and its gradients.

    megatron-core makes its buffers on the current CUDA device; here that is the CPU.
    """
    from ufork.parallel.engine.tensor_parallel import apply_tensor_parallel

    torch.cuda.current_device = lambda: "cpu"
    torch.set_num_threads(1)
    with join_world(rank_env, LayoutConfig(colocated_tp=rank_env.world_size), timeout_seconds=60) as world:
        model = UniFork(CONFIG, whole_model(True).dimensions, branches=[])
        model.load_state_dict(whole_model(True).state_dict(), strict=False)
        dims = apply_tensor_parallel(model, world.tp_group, sequence_parallel=True)
        (sequence, _) = sequences()
        own_TD = model.trunk(sequence, PackedAttention(sequence, model.kernel))
        tokens = len(sequence.token_ids_T) // world.tp_group.size()
        assert len(own_TD) == tokens, "each rank holds its own tokens only"
        mine = slice(world.tp_group.rank() * tokens, (world.tp_group.rank() + 1) * tokens)
        (own_TD * weighting(sequence)[mine]).sum().backward()
        found = {name: joined(g, dims.get(name), world.tp_group) for name, g in gradients(model).items()}
        return joined(own_TD.detach(), 0, world.tp_group), found


@pytest.mark.slow
def weighting(sequence):
    return torch.randn(len(sequence.token_ids_T), CONFIG.hidden_size, generator=torch.Generator().manual_seed(3))


def test_sequence_parallelism_computes_the_same():
    whole = whole_model(True)
    sequence, _ = sequences()
    hidden_TD = whole.trunk(sequence, PackedAttention(sequence, whole.kernel))
    (hidden_TD * weighting(sequence)).sum().backward()
    for found_TD, found in run_on_ranks(run_by_tokens, 2):
        torch.testing.assert_close(found_TD, hidden_TD.detach(), rtol=1e-5, atol=1e-6)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, gradients(whole)[name], rtol=1e-5, atol=1e-6, msg=name)


def run_refused(rank_env: RankEnvironment):
    from ufork.parallel.engine.tensor_parallel import apply_tensor_parallel

    with join_world(rank_env, LayoutConfig(colocated_tp=2), timeout_seconds=60) as world:
        with pytest.raises(ConfigError, match=r"tp=2 does not divide model\.num_key_value_heads=1"):
            apply_tensor_parallel(tiny_model(tiny_config(num_key_value_heads=1)), world.tp_group)


def test_sizes_that_cannot_be_partitioned_are_refused_by_name():
    run_on_ranks(run_refused, 2)
