"""Weighting by gradient norms: the norms that are measured, and the point to which the factors go."""

import math

import pytest
import torch

from tests.tiny import packed_sequence, tiny_model
from ufork.checkpoint.state import LossBalance
from ufork.model.layers.attention import PackedAttention
from ufork.train.config import GlobalBatchSize, GradNormConfig, PerTask, TrainConfig
from ufork.train.objectives.gradnorm import rebalanced
from ufork.train.stage_module import StageModule
from ufork.vocabulary import Task

WEIGHTS = PerTask(understanding=0.5, generation=2.0)
FIRST_LOSSES = {Task.UNDERSTANDING: 5.0, Task.GENERATION: 3.0}
TEXTS = [[5, 6], [7, 8, 9, 10]]


def config_of(**gradnorm) -> TrainConfig:
    return TrainConfig(loss_weighting="gradnorm", loss_weights=WEIGHTS, gradnorm=GradNormConfig(**gradnorm))


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_norms_come_to_the_wanted_proportion_whatever_their_scale(alpha):
    unweighted = {Task.UNDERSTANDING: 3e-6, Task.GENERATION: 4e-4}
    losses = {Task.UNDERSTANDING: 4.0, Task.GENERATION: 1.0}
    config, balance = config_of(alpha=alpha, rate=0.1), LossBalance(first_losses=FIRST_LOSSES)
    for _ in range(300):
        norms = {task: WEIGHTS.of(task) * balance.factor(task) * unweighted[task] for task in Task}
        balance = rebalanced(balance, config, losses=losses, norms=norms)
    wanted = {task: WEIGHTS.of(task) * (losses[task] / FIRST_LOSSES[task]) ** alpha for task in Task}
    first, second = (norms[task] / wanted[task] for task in Task)
    assert first == pytest.approx(second)
    assert sum(balance.factors.values()) == pytest.approx(2)


def test_a_step_goes_the_given_fraction_of_the_way():
    norms = {Task.UNDERSTANDING: 1.0, Task.GENERATION: 64.0}  # wanted 1 : 4, found 1 : 64
    balance = rebalanced(LossBalance(), config_of(rate=0.5), losses=FIRST_LOSSES, norms=norms)
    assert balance.first_losses == FIRST_LOSSES
    assert balance.factor(Task.UNDERSTANDING) / balance.factor(Task.GENERATION) == pytest.approx(math.sqrt(16))


@pytest.mark.parametrize("norm", [0.0, math.inf, math.nan])
def test_a_step_without_a_gradient_changes_nothing(norm):
    before = LossBalance(factors={Task.UNDERSTANDING: 1.5, Task.GENERATION: 0.5}, first_losses=FIRST_LOSSES)
    norms = {Task.UNDERSTANDING: 1.0, Task.GENERATION: norm}
    assert rebalanced(before, config_of(), losses=FIRST_LOSSES, norms=norms) is before


def test_a_phase_of_one_task_measures_nothing():
    config = config_of().model_copy(update={"global_batch_size": GlobalBatchSize(understanding=0)})
    assert StageModule(tiny_model(), config).losses[Task.GENERATION].fork_gradient is None
    balance = LossBalance()
    assert rebalanced(balance, config, losses={Task.GENERATION: 3.0}, norms={}) is balance


@pytest.mark.parametrize("task", Task)
def test_the_norm_is_that_of_the_hidden_states_gradient(task):
    module = StageModule(tiny_model(), config_of())
    sequences = [packed_sequence(task, texts=[text], seed=i) for i, text in enumerate(TEXTS)]
    num_targets = sum(sequence.num_targets for sequence in sequences)
    module.losses[task].factor = 0.3
    squared = 0.0
    for sequence in sequences:
        module(sequence, num_targets)[0].backward()
        attend = PackedAttention(sequence, module.model.kernel)
        hidden_TD = module.model.trunk(sequence, attend).detach().requires_grad_()
        total = module.model.branches[task](hidden_TD, sequence, attend)
        (gradient_TD,) = torch.autograd.grad(0.3 * WEIGHTS.of(task) * total / num_targets, hidden_TD)
        squared += gradient_TD.double().square().sum()
    gradient = module.losses[task].fork_gradient
    torch.testing.assert_close(gradient.take(hidden_TD.device), squared, rtol=1e-5, atol=0)
    assert gradient.take(hidden_TD.device) == 0, "each step counts anew"
