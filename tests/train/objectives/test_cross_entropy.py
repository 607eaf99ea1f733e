"""The step's loss from its packed sequences: equal to the formula for any packing of the samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import packed_sequence, tiny_model
from ufork.train.config import PerTask, TrainConfig
from ufork.train.stage_module import StageModule
from ufork.vocabulary import Task

TEXTS = [[5, 6], [7, 8, 9, 10], [11, 12, 13], [14, 15]]
LOG_VARIANCES = [0.7, -0.4]
WEIGHTS = PerTask(understanding=0.5, generation=2.0)


@pytest.fixture(scope="module", params=["fixed", "uncertainty"])
def loss(request):
    loss = StageModule(tiny_model(), TrainConfig(loss_weighting=request.param, loss_weights=WEIGHTS))
    if request.param == "uncertainty":
        set_log_variances(loss, torch.tensor(LOG_VARIANCES))
    return loss


def set_log_variances(loss, values_2):
    for task, value in zip(Task, values_2, strict=True):
        loss.losses[task].log_variance.data = value[None]


def step_loss(loss, ends):
    """Returns the step's loss, and the mean loss by task; the texts are divided into sequences at `ends`."""
    step, sums = 0.0, {}
    for task in Task:
        sequences = [
            packed_sequence(task, texts=TEXTS[a:b], seed=a)
            for a, b in zip([0, *ends], [*ends, 4], strict=True)
            if a < b
        ]
        num_targets = sum(sequence.num_targets for sequence in sequences)
        terms, totals = zip(*(loss(sequence, num_targets) for sequence in sequences), strict=True)
        step, sums[task] = step + sum(terms), sum(totals) / num_targets
    return step, sums


def test_the_loss_equals_the_formula(loss):
    step, means = step_loss(loss, [2])
    expected = 0.0
    for task, log_variance in zip(Task, LOG_VARIANCES, strict=True):
        if loss.losses[task].log_variance is None:
            expected += WEIGHTS.of(task) * means[task]
        else:
            expected += WEIGHTS.of(task) * torch.exp(-torch.tensor(log_variance)) * means[task] + log_variance / 2
    torch.testing.assert_close(step, expected)


def test_log_variances_are_learned_to_balance_the_tasks():
    """The gradient of s is zero where exp(s) is twice the weighted mean."""
    loss = StageModule(tiny_model(), TrainConfig(loss_weighting="uncertainty", loss_weights=WEIGHTS))
    _, means = step_loss(loss, [])
    balanced = torch.stack([2 * WEIGHTS.of(task) * means[task] for task in Task]).log()
    for shift in (-0.5, 0.0, 0.5):
        loss.zero_grad()
        set_log_variances(loss, balanced + shift)
        step_loss(loss, [])[0].backward()
        expected = (1 - torch.exp(torch.tensor(-shift))) / 2
        for task in Task:
            torch.testing.assert_close(loss.losses[task].log_variance.grad, expected[None], rtol=1e-4, atol=1e-6)


@settings(max_examples=20)
@given(ends=st.lists(st.integers(0, 4), max_size=3).map(sorted))
def test_the_loss_does_not_depend_on_how_samples_are_packed(loss, ends):
    torch.testing.assert_close(step_loss(loss, ends)[0], step_loss(loss, [])[0], rtol=1e-5, atol=1e-6)
