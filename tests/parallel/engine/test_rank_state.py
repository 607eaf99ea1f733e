"""A rank's shards, read from an engine: views of ZeRO's flat tensors, with the values of DeepSpeed's functions."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.errors import ConfigError
from ufork.parallel.engine.rank_state import EngineShards
from ufork.parallel.engine.state_files import WEIGHT
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

SUB_GROUP_SIZE = 2_000
"""Parameters of a flat tensor: a rank of the tiny model has several."""


def run_reading(rank_env: RankEnvironment):
    """Flat tensors of the engine, copies that an image needs, and the names whose values are not DeepSpeed's."""
    torch.set_num_threads(1)
    config = TrainConfig(
        global_batch_size=GlobalBatchSize(understanding=2, generation=0),
        precision="fp32",
        deepspeed={"zero_optimization": {"sub_group_size": SUB_GROUP_SIZE}},
    )
    with join_world(rank_env, timeout_seconds=60) as world:
        stage = open_stage(world, config, model=shallow_config(), seq_len=24)
        sequence = packed_sequence(Task.UNDERSTANDING, texts=[[5, 6, 7, 8]], seq_len=24)
        run_step(stage, {Task.UNDERSTANDING: [sequence]}, 0.1)
        state = stage.engine.shards.read()
        wrong = [
            (kind, name)
            for kind, named in state.tensors.items()
            for name, values in named.items()
            if not torch.equal(values, deepspeed_values(stage.engine._parameter(name), kind))
        ]
        flats = stage.engine._engine.optimizer.fp32_partitioned_groups_flat
        return len(flats), sorted(state.tensors), len(state.image().sources), wrong


def deepspeed_values(parameter, kind):
    if kind == WEIGHT:
        return safe_get_local_fp32_param(parameter).detach()
    return safe_get_local_optimizer_state(parameter, kind)


def test_a_snapshot_is_one_copy_per_flat_tensor_and_holds_what_deepspeed_returns():
    for num_flats, kinds, num_copies, wrong in run_on_ranks(run_reading, 2):
        assert num_flats > 2 and kinds == ["exp_avg", "exp_avg_sq", WEIGHT]
        assert num_copies == num_flats * len(kinds)
        assert wrong == []


def test_an_optimizer_that_is_offloaded_to_files_is_refused():
    engine = SimpleNamespace(optimizer=SimpleNamespace(swap_optimizer=True), module=torch.nn.Module())
    with pytest.raises(ConfigError, match="offload_optimizer.device=nvme: .* use device: cpu"):
        EngineShards(engine, None, {})
