"""Counting launches: what computes counts, once per kernel; what only looks at memory does not."""

import pytest
import torch

from benchmarks.generate import launches_per_position
from benchmarks.gpu_check.launches import count_launches
from tests.infer.recorded_graph import RecordedSteps
from tests.tiny import tiny_model, tiny_tokenizer
from ufork.infer.steps import EagerSteps

CPU = torch.device("cpu")


@pytest.mark.parametrize("inference", [False, True])
def test_operators_that_compute_are_counted_and_views_are_not(inference):
    values, linear = torch.ones(4, 8), torch.nn.Linear(8, 8)

    def action():
        out = linear(values).view(8, 4)[2:].transpose(0, 1)  # 1
        out += 1  # 2
        torch.empty(9), torch.zeros(0)
        return out.softmax(-1)  # 3

    with torch.inference_mode(inference), torch.no_grad():
        assert count_launches(action, CPU) == 3


def test_launches_per_position_are_those_of_the_later_positions():
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()
    growing = launches_per_position(model, tokenizer, 2, EagerSteps())
    static = launches_per_position(model, tokenizer, 2, EagerSteps(is_static=True))
    assert growing == int(growing) > 100, "every position launches the same"
    assert growing / 2 < static < 2 * growing
    assert launches_per_position(model, tokenizer, 2, RecordedSteps()) > 100, "the stand-in launches each operator"
