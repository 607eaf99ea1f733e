"""The planner's memory of a rank, verified against the tensors that a real ZeRO-3 engine keeps."""

import gc

import pytest
import torch

from tests.meta_trace import MetaTracker
from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import DIMENSIONS, packed_sequence, tiny_config
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import Stage, num_ranks_of
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.planning.memory import rank_memory
from ufork.planning.workload import Workload
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

MODEL = tiny_config(hidden_size=256, intermediate_size=512, num_key_value_heads=4, tie_word_embeddings=False)
LAYOUTS = {
    "one rank a stage": LayoutConfig(kind="forked"),
    "trunk tp 2, generation dp 2": LayoutConfig(
        kind="forked", trunk=StageShape(tp=2), generation=StageShape(dp=2), in_flight=4
    ),
}
SEQUENCES = {Task.UNDERSTANDING: 2, Task.GENERATION: 2}
WAYS = [("fp32", "adamw"), ("bf16", "adamw"), ("fp32", "muon"), ("bf16", "muon")]
"""Precisions and optimizers."""
CLOSE, CLOSE_PEAK = 0.15, 0.1


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if torch.is_tensor(tensor))


def run_held_bytes(rank_env: RankEnvironment, layout: LayoutConfig, precision: str, optimizer: str):
    """Stage of the rank, and bytes of its shards after two steps."""
    torch.set_num_threads(1)
    config = config_of(precision, optimizer)
    sequences = {
        task: [packed_sequence(task, texts=[[5, 6, 7]], seq_len=32, seed=n) for n in range(2)] for task in Task
    }
    with join_world(rank_env, layout, timeout_seconds=60) as world:
        stage = open_stage(world, config, model=MODEL, layout=layout, seq_len=32)
        for _ in range(2):
            run_step(stage, sequences if stage.reads_data else {}, 1e-3)
        zero = stage.engine._engine.optimizer
        shards = [parameter.ds_tensor for parameter in stage.engine._engine.module.parameters()]
        moments = [value for state in zero.optimizer.state.values() for value in state.values()]
        return world.coordinate.stage, {
            "weights": bytes_of(shards),
            "optimizer": bytes_of([*zero.fp32_partitioned_groups_flat, *moments]),
            "reduced gradients": bytes_of([zero.grad_partitions_flat_buffer]),
        }


def config_of(precision: str, optimizer: str) -> TrainConfig:
    sequences = GlobalBatchSize(understanding=2, generation=2)
    return TrainConfig(precision=precision, optimizer=optimizer, global_batch_size=sequences)


def workload_of(precision: str, optimizer: str) -> Workload:
    return Workload(
        model=MODEL,
        dimensions=DIMENSIONS,
        global_batch_size=SEQUENCES,
        seq_len=32,
        num_lanes=2,
        precision=precision,
        recompute=False,
        optimizer=optimizer,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "optimizer"), WAYS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_shards_of_a_rank_are_as_large_as_planned(name, precision, optimizer):
    layout, workload = LAYOUTS[name], workload_of(precision, optimizer)
    for stage, held in run_on_ranks(run_held_bytes, num_ranks_of(layout), layout, precision, optimizer):
        shape = getattr(layout, stage)
        planned = rank_memory(workload, Stage(stage), shape, reduce_each_backward=True)
        assert held["weights"] == pytest.approx(planned.weights, rel=CLOSE), stage
        assert held["optimizer"] == pytest.approx(planned.optimizer, rel=CLOSE), stage
        assert held["reduced gradients"] == pytest.approx(planned.gradients, rel=CLOSE), stage


def run_peak_bytes(rank_env: RankEnvironment, layout: LayoutConfig, precision: str, optimizer: str) -> int:
    """Most bytes of tensors held at once in the third step, when every kind of pass has run."""
    torch.set_num_threads(1)
    config = config_of(precision, optimizer)
    num_here = 2 // rank_env.world_size
    sequences = {
        task: [packed_sequence(task, texts=[[5, 6, 7]], seq_len=32, seed=n) for n in range(num_here)] for task in Task
    }
    tracker = MetaTracker("cpu")
    with join_world(rank_env, layout, timeout_seconds=60) as world, tracker:
        stage = open_stage(world, config, model=MODEL, layout=layout, seq_len=32)
        for _ in range(3):
            gc.collect()
            tracker.restart()
            run_step(stage, sequences, 1e-3)
        return tracker.trace.peak


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "optimizer"), WAYS)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_peak_of_a_step_is_as_planned(num_ranks, precision, optimizer):
    """Of a model whose weights take more than its activations, so that reduction and update matter."""
    workload = workload_of(precision, optimizer)
    planned = rank_memory(workload, Stage.COLOCATED, StageShape(dp=num_ranks))
    for peak in run_on_ranks(run_peak_bytes, num_ranks, LayoutConfig(), precision, optimizer):
        assert planned.total == pytest.approx(peak, rel=CLOSE_PEAK)
