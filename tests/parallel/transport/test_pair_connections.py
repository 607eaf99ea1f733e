"""By the rules of NCCL: pairs are connected before a step, and hosts that wait for their devices do not deadlock."""

import dataclasses

import pytest
import torch

from tests.nccl_rules import nccl_rules
from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import num_ranks_of
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

LAYOUT = LayoutConfig(kind="forked", trunk=StageShape(dp=2))
CONFIG = TrainConfig(global_batch_size=GlobalBatchSize(understanding=4, generation=4), precision="fp32")


def step(rank_env: RankEnvironment) -> tuple[list[int], list[int], str]:
    """Runs a step; returns the connections of each group before and after it, and how the groups were left."""
    torch.set_num_threads(1)
    groups = []
    sequences = {
        task: [packed_sequence(task, texts=[[5, 6, 7]], seq_len=24, seed=n) for n in range(2)] for task in Task
    }
    with join_world(rank_env, LAYOUT, timeout_seconds=60) as world:
        world = dataclasses.replace(world, data_plane=nccl_rules(made=groups))
        stage = open_stage(world, CONFIG, model=shallow_config(), layout=LAYOUT, seq_len=24)
        before = [len(group.connected) for group in groups]
        run_step(stage, sequences if stage.reads_data else {}, 0.1)
        after = [len(group.connected) for group in groups]
        stage.engine.close()
    return before, after, ", ".join(group.ended for group in groups)


def test_a_step_connects_no_ranks_and_its_groups_are_shut_down():
    outcomes = run_on_ranks(step, 4)
    for before, after, _ in outcomes:
        assert before == after, "a connection blocks the host until the peer's schedule has reached it, too"
    assert outcomes[0][0] == [4, 4, 0], "up and down, each with both branches in both directions; the tied embedding"
    with_tied_embedding, without = (", ".join(["shut down"] * number) for number in (3, 2))
    assert [ended for _, _, ended in outcomes] == [with_tied_embedding] * 3 + [without]


def step_of_hosts_that_wait(rank_env: RankEnvironment, layout: LayoutConfig) -> float:
    """Runs a step in which the host waits for all that runs on its device, at the beginning of every pass."""
    torch.set_num_threads(1)
    groups = []

    def waiting(run):
        def run_after_wait(*args):
            for group in groups:
                group.wait_for_all()
            return run(*args)

        return run_after_wait

    sequences = {
        task: [packed_sequence(task, texts=[[5, 6, 7]], seq_len=24, seed=n) for n in range(4 // layout.trunk.dp)]
        for task in Task
    }
    with join_world(rank_env, layout, timeout_seconds=60) as world:
        world = dataclasses.replace(world, data_plane=nccl_rules(made=groups))
        stage = open_stage(world, CONFIG, model=shallow_config(), layout=layout, seq_len=24)
        stage.engine.forward, stage.engine.backward = waiting(stage.engine.forward), waiting(stage.engine.backward)
        result = run_step(stage, sequences if stage.reads_data else {}, 0.1)
        stage.engine.close()
    return result.gradient_norm


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        LayoutConfig(kind="forked"),
        LayoutConfig(kind="forked", in_flight=8),
        LayoutConfig(kind="forked", trunk=StageShape(dp=2), generation=StageShape(dp=2)),
        LayoutConfig(kind="forked", generation=StageShape(dp=2)),
        LayoutConfig(kind="forked", understanding=StageShape(dp=4), trunk=StageShape(dp=2)),
    ],
    ids=["4 in flight", "8 in flight", "dp 2", "branch dp 2", "branch dp 4, trunk dp 2"],
)
def test_hosts_that_wait_for_their_devices_before_each_pass_do_not_deadlock(layout):
    """CUDA makes them wait when it loads a kernel or frees memory, and sends end only when they are received."""
    norms = run_on_ranks(step_of_hosts_that_wait, num_ranks_of(layout), layout)
    assert norms == [pytest.approx(norms[0])] * len(norms)
