"""Stages that keep their weights run passes without DeepSpeed's hooks, and train what the engine with them trains."""

import pytest
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from tests.ranks import run_on_ranks
from tests.stages import open_stage, weights_of
from tests.tiny import packed_sequence, shallow_config
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

WITH_HOOKS = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""Any setting of DeepSpeed's keeps its own passes."""
SEQ_LEN, STEPS = 24, 3
CASES = {
    "sgd": {"optimizer": "sgd"},
    "adamw, bf16": {"optimizer": "adamw", "precision": "bf16"},
    "muon, recomputed": {"optimizer": "muon", "activation_checkpointing": True},
    "frozen trunk": {"trainable": ["understanding", "rq_head"]},
}


def train(rank_env: RankEnvironment, settings, with_hooks: bool):
    """Returns losses, norms, whole weights, and how often DeepSpeed fetched weights."""
    torch.set_num_threads(1)
    fetches = []
    fetch = PartitionedParameterCoordinator.fetch_sub_module
    PartitionedParameterCoordinator.fetch_sub_module = lambda self, module, forward: (
        fetches.append(module),
        fetch(self, module, forward),
    )
    config = TrainConfig(
        **{"precision": "fp32", **settings},
        global_batch_size=GlobalBatchSize(understanding=2, generation=2),
        deepspeed=WITH_HOOKS if with_hooks else {},
    )
    with join_world(rank_env, timeout_seconds=60) as world:
        stage = open_stage(world, config, model=shallow_config(), seq_len=SEQ_LEN)
        own = range(world.rank, 2, world.size)
        results = [run_step(stage, sequences_of(step, own), 0.01) for step in range(STEPS)]
        weights = weights_of(stage, shallow_config())
        again = run_step(stage, sequences_of(STEPS, own), 0.01)  # reading the weights leaves them in place
        stage.engine.close()
    return [(result.losses, result.gradient_norm) for result in (*results, again)], weights, len(fetches)


def sequences_of(step: int, numbers):
    return {
        task: [packed_sequence(task, texts=[[5 + step, 6 + n]], seq_len=SEQ_LEN, seed=n) for n in numbers]
        for task in Task
    }


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_it_trains_what_the_engine_with_hooks_trains(name, num_ranks):
    expected, expected_weights, fetches = run_on_ranks(train, num_ranks, CASES[name], True)[0]
    found, weights, no_fetches = run_on_ranks(train, num_ranks, CASES[name], False)[0]
    assert found == expected
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[key], expected_weights[key]) for key in weights)
    assert fetches and not no_fetches, "DeepSpeed is not asked for weights"


def step_of_one_task(rank_env: RankEnvironment):
    """Returns the sum of a gradient of generation in a step of understanding alone, after one of both."""
    torch.set_num_threads(1)
    config = TrainConfig(precision="fp32", global_batch_size=GlobalBatchSize(understanding=1, generation=1))
    with join_world(rank_env, timeout_seconds=60) as world:
        stage = open_stage(world, config, model=shallow_config(), seq_len=SEQ_LEN)
        for tasks in (tuple(Task), (Task.UNDERSTANDING,)):
            with stage.engine.accumulating():
                for task in tasks:
                    sequence = packed_sequence(task, texts=[[5, 6]], seq_len=SEQ_LEN)
                    stage.engine.backward(stage.engine.forward(sequence, 1.0)[0], task)
        return float(stage.engine.whole_gradient("model.branches.generation.norm.weight").abs().sum())


def test_a_step_starts_without_gradients_of_the_step_before():
    assert run_on_ranks(step_of_one_task, 1) == [0.0]
