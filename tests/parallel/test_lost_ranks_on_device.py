"""With transfers that run on the device, where waiting has no time-out, all others name a lost rank in time, too.

The generation rank fails in the last backward pass of a step: everything that it had to receive on the host has
arrived, and only the device of the trunk waits for it, while the host of the trunk has launched all its passes.
"""

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from pipelines.launch import local_ranks
from tests.nccl_rules import nccl_rules
from tests.parallel.test_lost_ranks import (
    CONFIG,
    GENERATION_RANK,
    LAYOUT,
    TIMEOUT_SECONDS,
    fail,
    require_named,
    said_by_rank,
)
from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.errors import PeerError
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.step import run_step
from ufork.vocabulary import Task

TRUNK_RANKS = {0, 1}
PATIENCE_SECONDS = 0.1


def train(rank_env: RankEnvironment, fault: str, sees_lost_peers: bool, folder: Path):
    """Runs a step, then one in whose last backward pass the generation rank fails; writes the errors to `folder`."""
    torch.set_num_threads(1)
    sequences = {
        task: [packed_sequence(task, texts=[[5, 6, 7]], seq_len=24, seed=n) for n in range(2)] for task in Task
    }
    groups = []
    began = time.monotonic()
    try:
        with join_world(rank_env, LAYOUT, timeout_seconds=TIMEOUT_SECONDS) as world:
            plane = nccl_rules(made=groups, sees_lost_peers=sees_lost_peers)
            world = dataclasses.replace(world, data_plane=plane)
            stage = open_stage(world, CONFIG, model=shallow_config(num_key_value_heads=4), layout=LAYOUT, seq_len=24)
            run_step(stage, sequences if stage.reads_data else {}, 0.1)
            for group in groups:
                group.device.patience_seconds = PATIENCE_SECONDS
            backward, backwards = stage.engine.backward, []

            def count(loss, task):
                backwards.append(1)
                if world.rank == GENERATION_RANK and len(backwards) == 2:
                    fail(fault)
                backward(loss, task)

            stage.engine.backward = count
            began = time.monotonic()
            run_step(stage, sequences if stage.reads_data else {}, 0.1)
    except PeerError as error:
        ended = {group.ended for group in groups}
        (folder / str(rank_env.rank)).write_text(f"{time.monotonic() - began:.1f} {ended} {error}")
        raise


@pytest.mark.slow
@pytest.mark.parametrize("sees_lost_peers", [False, True])
@pytest.mark.parametrize("fault", ["dies", "stops", "hangs"])
def test_every_other_rank_reports_what_its_device_waited_for(fault, sees_lost_peers, tmp_path, monkeypatch):
    monkeypatch.setattr(local_ranks, "CONSEQUENCE_SECONDS", 3 * TIMEOUT_SECONDS)  # time for all ranks to report
    with pytest.raises(PeerError):
        run_on_ranks(train, 4, fault, sees_lost_peers, tmp_path)
    messages = said_by_rank(tmp_path)
    assert messages.keys() == {0, 1, 2, 3} - {GENERATION_RANK}
    assert all(message.startswith("{'aborted'} ") for _, message in messages.values()), messages
    messages = {rank: (seconds, message.split(" ", 1)[1]) for rank, (seconds, message) in messages.items()}
    require_named(messages, GENERATION_RANK, fault)
    for rank, (_, message) in messages.items():
        if rank in TRUNK_RANKS and not sees_lost_peers:  # a group that sees the loss ends its rank in any earlier pass
            assert "waited for the gradient of generation micro-batch 1 from rank 3 (generation" in message
            assert "backward of generation micro-batch 1" in message
