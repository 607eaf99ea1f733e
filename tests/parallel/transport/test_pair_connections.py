"""By the rules of NCCL, which blocks the host at a pair's first transfer, pairs have to be connected before a step."""

import dataclasses

import pytest
import torch

from tests.nccl_rules import nccl_rules
from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.errors import PeerError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.bridge import Bridge
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

LAYOUT = LayoutConfig(kind="forked", trunk=StageShape(dp=2))
CONFIG = TrainConfig(global_batch_size=GlobalBatchSize(understanding=4, generation=4), precision="fp32")
TIMEOUT_SECONDS = 8.0


def step(rank_env: RankEnvironment, connects: bool) -> str:
    """Runs a step; returns how the groups of the data plane were left, or the error."""
    torch.set_num_threads(1)
    if not connects:
        Bridge.connect_pairs = lambda bridge, pairs: None
    groups = []
    sequences = {
        task: [packed_sequence(task, texts=[[5, 6, 7]], seq_len=24, seed=n) for n in range(2)] for task in Task
    }
    try:
        with join_world(rank_env, LAYOUT, timeout_seconds=TIMEOUT_SECONDS) as world:
            world = dataclasses.replace(world, data_plane=nccl_rules(made=groups))
            stage = open_stage(world, CONFIG, model=shallow_config(), layout=LAYOUT, seq_len=24)
            run_step(stage, sequences if stage.reads_data else {}, 0.1)
            stage.engine.close()
    except PeerError as error:
        return f"{groups[0].ended}: {error}"
    return ", ".join(group.ended for group in groups)


def test_a_step_whose_pairs_were_connected_before_runs_and_its_groups_are_shut_down():
    trunk, understanding = ", ".join(["shut down"] * 3), ", ".join(["shut down"] * 3)
    assert run_on_ranks(step, 4, True) == [trunk, trunk, understanding, "shut down, shut down"]


@pytest.mark.slow
def test_a_step_whose_pairs_connect_at_their_first_transfer_hangs():
    outcomes = run_on_ranks(step, 4, False)
    assert all(outcome.startswith("aborted: ") for outcome in outcomes), outcomes
    assert any("sending hidden states" in outcome for outcome in outcomes)
    assert any("sending the gradient" in outcome for outcome in outcomes)
