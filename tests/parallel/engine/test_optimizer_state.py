"""An optimizer's state after a restore is that of an optimizer that was never interrupted."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.parallel.engine.fused_adam import FusedAdam
from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.model.layers.apex import FUSED_ADAM, find_apex_kernel
from ufork.parallel.engine.optimizer_state import make_state
from ufork.parallel.engine.state_files import WEIGHT
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import World, join_world
from ufork.train import build_stage as stage_builder
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, fused=True),
    "adamw, not fused": lambda groups: torch.optim.AdamW(groups),
    "sgd with momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "apex": FusedAdam,
}


class EveryGroupCounts(FusedAdam):
    counts_empty_groups = True


def step_as_deepspeed(optimizer, flat_tensors):
    """Steps each flat tensor alone in its group, as ZeRO-3's `_optimizer_step`."""
    for group, flat in zip(optimizer.param_groups, flat_tensors, strict=True):
        flat.grad = torch.ones_like(flat)
        group["params"] = [flat]
        optimizer.step()
        group["params"] = []


def structure_of(optimizer, flat_tensors):
    def described(value):
        return (value.dtype, value.device, value.shape) if torch.is_tensor(value) else value

    states = [{name: described(value) for name, value in optimizer.state[flat].items()} for flat in flat_tensors]
    return states, [dict(group) for group in optimizer.param_groups]


def empty_optimizer(make, device):
    flat_tensors = [nn.Parameter(torch.zeros(size, device=device)) for size in (5, 2)]
    optimizer = make([{"params": [flat], "weight_decay": 0.1} for flat in flat_tensors])
    for group in optimizer.param_groups:
        group["params"] = []
    return optimizer, flat_tensors


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_made_state_has_the_values_dtypes_and_devices_of_the_optimizers_own(name, device):
    with FakeTensorMode():
        undisturbed, flat_tensors = empty_optimizer(OPTIMIZERS[name], device)
        for _ in range(3):
            step_as_deepspeed(undisturbed, flat_tensors)
        restored, other_tensors = empty_optimizer(OPTIMIZERS[name], device)
        make_state(restored, other_tensors, updates=3)
        assert structure_of(restored, other_tensors) == structure_of(undisturbed, flat_tensors)
        assert len(restored.state) == len(other_tensors), "the probe leaves nothing behind"


def test_counts_are_the_updates_on_the_device_that_a_fused_kernel_reads():
    """torch's fused kernel reads the count on the GPU: pytorch#111123 is its error for one on the CPU."""
    optimizer, flat_tensors = empty_optimizer(OPTIMIZERS["adamw"], "cpu")
    make_state(optimizer, flat_tensors, updates=7)
    assert [float(optimizer.state[flat]["step"]) for flat in flat_tensors] == [7.0, 7.0]
    with FakeTensorMode():
        optimizer, flat_tensors = empty_optimizer(OPTIMIZERS["adamw"], "cuda")
        make_state(optimizer, flat_tensors, updates=7)
        assert all(value.is_cuda for flat in flat_tensors for value in optimizer.state[flat].values())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "apex itself"])
def test_a_fused_kernel_continues_from_made_state_to_the_last_bit(name):
    make = OPTIMIZERS["adamw"] if name == "adamw" else find_apex_kernel(FUSED_ADAM)
    if make is None:
        pytest.skip("NVIDIA apex is not installed with its CUDA extensions")
    undisturbed, flat_tensors = empty_optimizer(make, "cuda")
    step_as_deepspeed(undisturbed, flat_tensors)
    resumed, other_tensors = empty_optimizer(make, "cuda")
    make_state(resumed, other_tensors, updates=1)
    for flat, other in zip(flat_tensors, other_tensors, strict=True):
        other.data.copy_(flat.data)
        for kind in ("exp_avg", "exp_avg_sq"):
            resumed.state[other][kind].copy_(undisturbed.state[flat][kind])
    step_as_deepspeed(undisturbed, flat_tensors)
    step_as_deepspeed(resumed, other_tensors)
    assert all(torch.equal(flat, other) for flat, other in zip(flat_tensors, other_tensors, strict=True))


@dataclass(frozen=True)
class Case:
    optimizer: str = "adamw"
    stand_in: type | None = None
    sub_group_size: int = 10**9
    precision: str = "fp32"


CASES = {
    "adamw": Case(),
    "adamw, sub-groups, bf16": Case(sub_group_size=300, precision="bf16"),
    "sgd": Case(optimizer="sgd"),
    "muon": Case(optimizer="muon"),
    "muon, sub-groups, bf16": Case(optimizer="muon", sub_group_size=300, precision="bf16"),
    "apex": Case(stand_in=FusedAdam),
    "apex, sub-groups": Case(stand_in=FusedAdam, sub_group_size=300),
    "apex of old, sub-groups": Case(stand_in=EveryGroupCounts, sub_group_size=300),
}
BEFORE, AFTER = 3, 2
"""Steps before and after the interruption."""


def opened(world: World, case: Case, name: str):
    config = TrainConfig(
        global_batch_size=GlobalBatchSize(understanding=2, generation=2),
        optimizer=case.optimizer,
        precision=case.precision,
        deepspeed={"zero_optimization": {"sub_group_size": case.sub_group_size}},
    )
    if case.stand_in:
        stage_builder.build_optimizer = lambda module, config, device: case.stand_in(
            [
                {"params": [p for p in module.parameters() if p.requires_grad and p.dim() > 1], "weight_decay": 0.1},
                {"params": [p for p in module.parameters() if p.requires_grad and p.dim() <= 1]},
            ]
        )
    return open_stage(world, config, model=shallow_config(), seq_len=16, name=name)


def train(stage, world: World, steps):
    for step in steps:
        sequences = {task: [packed_sequence(task, texts=[[5 + step, 6 + world.rank]], seq_len=16)] for task in Task}
        run_step(stage, sequences, 0.01)


def values_of(stage):
    tensors = stage.engine.shards.read().tensors
    return {kind: {name: shard.detach().clone() for name, shard in named.items()} for kind, named in tensors.items()}


def interrupted_and_not(rank_env: RankEnvironment, case: Case):
    """Returns the rank's values, counts and number of sub-groups: of a run resumed after BEFORE steps, and of one that
    was not interrupted."""
    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=60) as world:
        outcomes = []
        whole = opened(world, case, "whole")
        train(whole, world, range(BEFORE))
        state, saved = whole.engine.shards.read(), values_of(whole)
        train(whole, world, range(BEFORE, BEFORE + AFTER))
        resumed = opened(world, case, "resumed")
        resumed.engine.shards.restore(
            lambda kind, name, region: saved[kind].get(name), saved.keys() - {WEIGHT}, state.optimizer_steps
        )
        train(resumed, world, range(BEFORE, BEFORE + AFTER))
        for stage in (resumed, whole):
            zero = stage.engine._engine.optimizer
            counts = structure_of(zero.optimizer, zero.fp32_partitioned_groups_flat)
            steps = stage.engine.shards.read().optimizer_steps
            outcomes.append((values_of(stage), counts, steps, len(zero.fp16_groups)))
            stage.engine.close()
        return outcomes


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "apex, sub-groups" else pytest.mark.slow) for name in CASES]
)
def test_a_resumed_run_is_an_uninterrupted_one_to_the_last_bit(name):
    case = CASES[name]
    for resumed, whole in run_on_ranks(interrupted_and_not, 2, case):
        (values, counts, steps, _), (expected, expected_counts, expected_steps, sub_groups) = resumed, whole
        assert values.keys() == expected.keys()
        for kind in expected:
            assert all(torch.equal(values[kind][name], expected[kind][name]) for name in expected[kind]), kind
        assert counts == expected_counts
        assert steps == expected_steps == (0 if case.optimizer == "sgd" else BEFORE + AFTER)
        num_groups = 3 if case.optimizer == "muon" else 2
        assert sub_groups == num_groups if case.sub_group_size == 10**9 else sub_groups > num_groups
