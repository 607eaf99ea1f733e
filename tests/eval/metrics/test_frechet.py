"""The Fréchet distance against its closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ufork.eval.metrics.frechet import frechet_distance


def test_distance_of_a_shift_is_its_square():
    features = np.random.default_rng(0).normal(size=(200, 5))
    assert frechet_distance(features, features + np.array([3, 0, 4, 0, 0])) == pytest.approx(25)


def test_distance_of_independent_scales():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(100_000, 2))
    expected = (1 - 2) ** 2 + (1 - 3) ** 2
    assert frechet_distance(values, rng.normal(size=(100_000, 2)) * [2, 3]) == pytest.approx(expected, rel=0.02)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(1, 20))
def test_the_distance_is_symmetric_even_with_fewer_pictures_than_features(seed, pictures, features):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(pictures, features)).astype(np.float32)
    second = (rng.normal(size=(pictures + 3, features)) * 2 + 1).astype(np.float32)
    there, back = frechet_distance(first, second), frechet_distance(second, first)
    assert there == pytest.approx(back, rel=1e-5, abs=1e-5)
    assert there >= 0
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-5)
