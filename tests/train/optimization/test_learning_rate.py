"""The learning rate over the steps of a phase."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ufork.train.config import TrainConfig
from ufork.train.optimization.learning_rate import learning_rate


def rates(**changes):
    config = TrainConfig(**{"steps": 100, "learning_rate": 2.0} | changes)
    return [learning_rate(config, step / config.steps) for step in range(config.steps)]


@given(
    steps=st.integers(1, 60),
    warmup_ratio=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "constant"]),
    floor=st.floats(0, 1),
)
def test_the_rate_rises_then_never_rises_again_and_keeps_its_bounds(steps, warmup_ratio, schedule, floor):
    found = rates(steps=steps, warmup_ratio=warmup_ratio, schedule=schedule, min_lr_ratio=floor)
    assert all(0 < rate <= 2.0 or (rate == 0 and floor == 0) for rate in found)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert top <= math.ceil(warmup_ratio * steps)


def test_the_warm_up_is_linear():
    found = rates(warmup_ratio=0.09, schedule="constant")
    assert found[:9] == pytest.approx([0.2 * (step + 1) for step in range(9)])
    assert set(found[9:]) == {2.0}


def test_the_cosine_is_halfway_in_the_middle_and_ends_at_its_floor():
    found = rates(steps=101, warmup_ratio=0.0, min_lr_ratio=0.1)
    assert (found[0], found[-1]) == (2.0, pytest.approx(0.2, abs=0.001))
    assert (found[50] + found[51]) / 2 == pytest.approx((2.0 + 0.2) / 2)
