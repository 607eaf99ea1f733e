"""ZeRO-3 gathers weights ahead of their use in every kind of pass, and its ranks stop agreeing after two steps."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero import partitioned_param_coordinator as deepspeed_coordinator
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.parallel.config import LayoutConfig
from ufork.parallel.engine import gather_traces
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

STEPS, SEQUENCES = 4, 4
CONFIG = TrainConfig(
    global_batch_size=GlobalBatchSize(understanding=SEQUENCES, generation=SEQUENCES),
    optimizer="sgd",
    precision="fp32",
    deepspeed={"zero_optimization": {"stage3_param_persistence_threshold": 0}},
)
LAYOUTS = {
    "colocated dp 2": (LayoutConfig(), 2),
    "trunk dp 2": (LayoutConfig(kind="forked", trunk={"dp": 2}, generation={"dp": 2}), 5),
}
"""Layouts and their number of ranks."""


def count_in(counts: Counter) -> None:
    """Counts what ZeRO-3's coordinators do on this rank, which is a process of its own: parameters gathered before the
    module that needs them runs are `ahead`, others `late`."""
    coordinator = deepspeed_coordinator.PartitionedParameterCoordinator
    invalidate, fetch = coordinator._invalidate_trace, coordinator._fetch_sub_module_impl
    agree = deepspeed_coordinator.assert_ints_same_as_other_ranks

    def counted_invalidate(self):
        counts["invalidations"] += 1
        invalidate(self)

    def counted_agree(numbers):
        counts["agreements"] += 1
        agree(numbers)

    def counted_fetch(self, module, forward, is_leaf):
        for parameter in module.parameters(recurse=is_leaf):
            counts["late" if parameter.ds_status is ZeroParamStatus.NOT_AVAILABLE else "ahead"] += 1
        fetch(self, module, forward, is_leaf)

    coordinator._invalidate_trace, coordinator._fetch_sub_module_impl = counted_invalidate, counted_fetch
    deepspeed_coordinator.assert_ints_same_as_other_ranks = counted_agree


def sequences_of(task: Task, step: int, numbers):
    """Packed sequences; those of understanding with an odd number have no image."""
    sequences = []
    for number in numbers:
        sequence = packed_sequence(task, texts=[[5 + step, 6 + number]], seq_len=16, seed=number)
        sequences.append(without_images(sequence) if task is Task.UNDERSTANDING and number % 2 else sequence)
    return sequences


def without_images(sequence):
    names = ("image_positions_I", "image_begins_M", "image_ends_M", "codes_IC")
    return dataclasses.replace(sequence, **{name: getattr(sequence, name)[:0] for name in names})


def train(rank_env: RankEnvironment, layout: LayoutConfig, recompute: bool, other_deepspeed: bool = False):
    """Returns the rank's stage, its losses, and its counts of each step."""
    torch.set_num_threads(1)
    counts: Counter = Counter()
    count_in(counts)
    if other_deepspeed:
        gather_traces._like = refuse
    with join_world(rank_env, layout, timeout_seconds=60) as world:
        config = CONFIG.model_copy(update={"activation_checkpointing": recompute})
        stage = open_stage(world, config, model=shallow_config(), layout=layout, seq_len=16)
        losses, by_step = [], []
        for step in range(STEPS):
            counts.clear()
            own = range(world.coordinate.dp_rank, SEQUENCES, world.dp_group.size())
            sequences = {task: sequences_of(task, step, own) for task in Task} if stage.reads_data else {}
            losses.append(list(run_step(stage, sequences, 0.1).losses.values()))
            by_step.append(dict(counts))
        stage.engine.close()
        return world.coordinate.stage, torch.tensor(losses), by_step


def refuse(coordinator):
    raise AttributeError("no such attribute")


@pytest.fixture(scope="module")
def losses_of_one_process():
    return run_on_ranks(train, 1, LayoutConfig(), False)[0][1]


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param("colocated dp 2", marks=pytest.mark.slow), "trunk dp 2"])
def test_gathers_run_ahead_and_ranks_agree_no_more_after_two_steps(name, recompute, losses_of_one_process):
    layout, num_ranks = LAYOUTS[name]
    for stage, losses, by_step in run_on_ranks(train, num_ranks, layout, recompute):
        torch.testing.assert_close(losses, losses_of_one_process, rtol=1e-5, atol=1e-6)
        assert not any("invalidations" in counts for counts in by_step), f"{stage}: {by_step}"
        assert "late" in by_step[0], "the test sees gathers that are not ahead"
        for counts in by_step[2:]:
            assert counts.keys() == {"ahead"}, f"{stage}: {by_step}"


@pytest.mark.slow
def test_another_deepspeed_trains_the_same_with_one_record(losses_of_one_process):
    """Its coordinator cannot be copied; the passes of all tasks then invalidate the one record, as without this."""
    layout, num_ranks = LAYOUTS["colocated dp 2"]
    for _, losses, by_step in run_on_ranks(train, num_ranks, layout, False, True):
        torch.testing.assert_close(losses, losses_of_one_process, rtol=1e-5, atol=1e-6)
        assert by_step[-1].keys() == {"invalidations", "agreements", "ahead", "late"}


def test_a_coordinator_that_cannot_be_copied_is_reported(caplog):
    shared = SimpleNamespace()
    offload = SimpleNamespace(param_coordinator=shared, module=torch.nn.Linear(1, 1))
    traces = gather_traces.GatherTraces(offload)
    assert "ZeRO-3 prefetches few weights" in caplog.text and deepspeed.__version__ in caplog.text
    traces.begin_backward("backward")
    assert traces.select("forward") is offload.param_coordinator is shared


def gathered_in_backward_passes(rank_env: RankEnvironment):
    """Returns the most parameters that each backward pass of the trunk held at once, gathered without prefetching."""
    torch.set_num_threads(1)
    layout, _ = LAYOUTS["trunk dp 2"]
    coordinator, most = deepspeed_coordinator.PartitionedParameterCoordinator, []
    release, begin = coordinator.release_sub_module, gather_traces.GatherTraces.begin_backward
    with join_world(rank_env, layout, timeout_seconds=60) as world:
        zero = {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}
        config = CONFIG.model_copy(update={"deepspeed": {"zero_optimization": zero}})
        stage = open_stage(world, config, model=shallow_config(), layout=layout, seq_len=16)
        parameters = list(stage.engine._engine.module.parameters())

        def counted_release(self, module, forward=False):
            if most:
                most[-1] = max(most[-1], sum(p.ds_status is ZeroParamStatus.AVAILABLE for p in parameters))
            release(self, module, forward)

        def counted_begin(self, kind):
            most.append(0)
            begin(self, kind)

        coordinator.release_sub_module = counted_release
        gather_traces.GatherTraces.begin_backward = counted_begin
        own = range(world.coordinate.dp_rank, SEQUENCES, world.dp_group.size())
        for step in range(2):
            most.clear()
            run_step(stage, {t: sequences_of(t, step, own) for t in Task} if stage.reads_data else {}, 0.1)
        backwards = [action for action in stage.actions if action.direction == "backward"]
        consecutive = backwards[-2:] == list(stage.actions[-2:])
        stage.engine.close()
        return most, len(parameters), consecutive


@pytest.mark.slow
def test_consecutive_backward_passes_of_the_trunk_each_free_weights_as_they_go():
    most, num_parameters, consecutive = run_on_ranks(gathered_in_backward_passes, 5)[0]
    assert consecutive, "the schedule ends with two backward passes"
    assert len(set(most)) == 1 and most[0] < num_parameters


class GatherStream:
    """Stands in for the stream of gathers that ZeRO-3 has on CUDA."""

    def __init__(self, events: list[str]):
        self.events = events

    def wait_stream(self, other: object) -> None:
        self.events.append("wait")


def order_of_gathers_and_updates(rank_env: RankEnvironment):
    """Returns what happens in two steps, consecutive gathers as one."""
    torch.set_num_threads(1)
    events: list[str] = []
    coordinator = deepspeed_coordinator.PartitionedParameterCoordinator
    fetch = coordinator._fetch_sub_module_impl

    def recorded_fetch(self, *args):
        events.extend(["gather"] if events[-1:] != ["gather"] else [])
        fetch(self, *args)

    coordinator._fetch_sub_module_impl = recorded_fetch
    with join_world(rank_env, timeout_seconds=60) as world:
        config = CONFIG.model_copy(update={"global_batch_size": GlobalBatchSize(understanding=1, generation=1)})
        stage = open_stage(world, config, model=shallow_config(), seq_len=16)
        stage.engine._passes._traces._own._PartitionedParameterCoordinator__allgather_stream = GatherStream(events)
        for step in range(2):
            sequences = {task: sequences_of(task, step, [0]) for task in Task}
            run_step(stage, sequences, 0.1, before_update=lambda: events.append("update"))
        return events


def test_the_stream_of_gathers_waits_for_an_update_before_it_reads_the_weights():
    assert run_on_ranks(order_of_gathers_and_updates, 1) == [["wait", "gather", "update"] * 2]
