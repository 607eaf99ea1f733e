"""Each stage is a separate world, connected by the job's bridge; no rank waits without a timeout."""

import dataclasses
import os
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.errors import ConfigError, PeerError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import make_layout
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport import stage_world
from ufork.parallel.transport.stage_world import World, join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

FORKED = LayoutConfig(kind="forked", trunk=StageShape(tp=2), generation=StageShape(dp=2))
SEQUENCES = {Task.UNDERSTANDING: 2, Task.GENERATION: 2}


def bridge_of(world: World, layout: LayoutConfig | None = None, name="test"):
    return world.open_bridge(
        make_layout(layout or LayoutConfig(), num_ranks=world.size, global_batch_size={t: 4 for t in Task}), name
    )


def run_together(rank_env: RankEnvironment):
    with join_world(rank_env, timeout_seconds=60) as world:
        bridge = bridge_of(world)
        sums = bridge.sum(world.rank + 1, 1e-12 + 1e3 * world.rank)
        return bridge.is_leader, sums, bridge.gather({"rank": world.rank}), bridge.gather(world.rank)


def test_ranks_sum_in_double_precision_and_gather_in_their_order():
    gathered = [{"rank": 0}, {"rank": 1}]
    assert run_on_ranks(run_together, 2) == [
        (True, [3.0, 1e3 + 2e-12], gathered, [0, 1]),
        (False, [3.0, 1e3 + 2e-12], gathered, [0, 1]),
    ]


def test_a_job_of_one_rank_works():
    assert run_on_ranks(run_together, 1) == [(True, [1.0, 1e-12], [{"rank": 0}], [0])]


def run_forked(rank_env: RankEnvironment):
    with join_world(rank_env, FORKED, timeout_seconds=60) as world:
        seen = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        return world.coordinate.stage, seen, dist.get_world_size(), world.dp_group.size(), world.tp_group.size()


def test_deepspeed_sees_the_stage_as_its_world():
    assert run_on_ranks(run_forked, 5) == [
        ("trunk", ["0", "2", "0"], 2, 1, 2),
        ("trunk", ["1", "2", "1"], 2, 1, 2),
        ("understanding", ["0", "1", "2"], 1, 1, 1),
        ("generation", ["0", "2", "3"], 2, 2, 1),
        ("generation", ["1", "2", "4"], 2, 2, 1),
    ]


def run_on_a_grid(rank_env: RankEnvironment):
    grid = LayoutConfig(kind="forked", trunk=StageShape(tp=2, dp=2))
    with join_world(rank_env, grid, timeout_seconds=60) as world:
        groups = [dist.group.WORLD, world.dp_group, world.tp_group]
        timeouts = {group._get_backend(world.device).options._timeout.total_seconds() for group in groups}
        return timeouts, *(dist.get_process_group_ranks(group) for group in groups[1:])


def test_every_group_of_a_stage_has_the_time_out_of_the_job():
    trunk = [([0, 2], [0, 1]), ([1, 3], [0, 1]), ([0, 2], [2, 3]), ([1, 3], [2, 3])]
    assert run_on_ranks(run_on_a_grid, 6) == [({60.0}, dp, tp) for dp, tp in [*trunk, ([0], [0]), ([0], [0])]]


def run_with_two_backends(rank_env: RankEnvironment):
    """Trains a step in groups that have a backend for the host and another one for a device, as on CUDA."""
    import torch.testing._internal.distributed.fake_pg  # registers "fake", which has no device here

    torch.set_num_threads(1)
    stage_world.BACKENDS = {"cpu": "cpu:gloo,cuda:fake"}
    layout = LayoutConfig(kind="forked", trunk=StageShape(tp=2, dp=2))
    config = TrainConfig(global_batch_size=GlobalBatchSize(understanding=2, generation=2), precision="fp32")
    with join_world(rank_env, layout, timeout_seconds=60) as world:
        stage = open_stage(world, config, model=shallow_config(num_key_value_heads=4), layout=layout, seq_len=24)
        sequences = {task: [packed_sequence(task, texts=[[5, 6, 7]], seq_len=24)] for task in Task}
        result = run_step(stage, sequences if stage.reads_data else {}, 0.1)
        groups = [dist.group.WORLD, world.dp_group, world.tp_group]
        names = {tuple(group._get_backend(torch.device(kind)).name() for kind in ("cpu", "cuda")) for group in groups}
        return names, result.is_finite


@pytest.mark.slow
def test_all_groups_of_a_stage_have_both_backends_and_deepspeed_trains_in_them():
    assert run_on_ranks(run_with_two_backends, 6) == [({("gloo", "fake")}, True)] * 6


class StandInBackend:
    timeout = None

    def _set_default_timeout(self, timeout):
        self.timeout = timeout.total_seconds()


def test_watchdogs_of_nccl_are_later_than_the_host_and_a_group_that_is_the_world_counts_once():
    world, tp = StandInBackend(), StandInBackend()
    groups = [SimpleNamespace(_get_backend=lambda device, backend=backend: backend) for backend in (world, world, tp)]
    assert stage_world._nccl_groups(torch.device("cuda", 0), timedelta(seconds=600), *groups) == (world, tp)
    assert world.timeout == tp.timeout > 2 * 600


def run_misfit(rank_env: RankEnvironment):
    with pytest.raises(ConfigError, match="5 ranks, the job has 1"), join_world(rank_env, FORKED, timeout_seconds=60):
        pass


def test_a_layout_of_another_size_is_refused_before_any_rank_waits():
    run_on_ranks(run_misfit, 1)


TIMEOUT_SECONDS = 4.0


def run_without_peer(rank_env: RankEnvironment, fault: str):
    """Rank 1 is gone or hangs; rank 0 returns its error and how long it took."""
    with join_world(rank_env, timeout_seconds=TIMEOUT_SECONDS) as world:
        bridge = bridge_of(world)
        bridge.sum(1.0)
        if world.rank == 1:
            time.sleep(2 * TIMEOUT_SECONDS if fault == "hangs" else 0)
            return None
        began = time.monotonic()
        with pytest.raises(PeerError) as raised:
            bridge.sum(1.0, waits_for="the answer")
        return str(raised.value), time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["is gone", "hangs"])
def test_a_peer_that_does_not_answer_is_an_error_within_the_timeout(fault):
    (message, seconds), _ = run_on_ranks(run_without_peer, 2, fault)
    assert message.startswith("rank 0 (colocated, replica 0 of 2, tp rank 0 of 1) waited for the answer of all ranks")
    assert seconds < 2 * TIMEOUT_SECONDS


def run_alone(rank_env: RankEnvironment):
    began = time.monotonic()
    where = f"rendezvous with the other ranks at 127.0.0.1:{rank_env.master_port} failed"
    with pytest.raises(PeerError, match=f"rank 0 of 2: {where}"):
        with join_world(dataclasses.replace(rank_env, world_size=2), timeout_seconds=1):
            pass
    return time.monotonic() - began


@pytest.mark.slow
def test_a_rank_that_no_other_joins_times_out():
    (seconds,) = run_on_ranks(run_alone, 1)
    assert seconds < 10


def test_the_value_of_rank_0_reaches_the_others_in_time():
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    ranks = [
        SimpleNamespace(rank=rank, store=store, timeout_seconds=0.1, coordinate=f"rank {rank}", secret="s")
        for rank in (0, 1)
    ]
    assert [World.from_rank_0(rank, "phases", {"a": rank.rank}) for rank in ranks] == [{"a": 0}] * 2
    with pytest.raises(PeerError, match="rank 1 waited for rank 0"):
        World.from_rank_0(ranks[1], "later", None)


def run_idle_rank(rank_env: RankEnvironment):
    """The understanding rank has no work, and waits longer than any time-out until the leader has finished."""
    with join_world(rank_env, LayoutConfig(kind="forked"), timeout_seconds=1) as world:
        layout = make_layout(
            LayoutConfig(kind="forked"), num_ranks=3, global_batch_size={Task.UNDERSTANDING: 0, Task.GENERATION: 1}
        )
        assert (world.rank in layout.present_ranks) == (world.coordinate.stage != "understanding")
        if world.rank in layout.present_ranks:
            bridge = world.open_bridge(layout, "first")
            for _ in range(8):
                time.sleep(0.3)
                bridge.sum(1.0)
            if bridge.is_leader:
                world.report_finished("first")
        world.wait_until_finished("first")
        return True


@pytest.mark.slow
def test_a_rank_without_work_waits_for_the_others():
    assert run_on_ranks(run_idle_rank, 3) == [True] * 3
