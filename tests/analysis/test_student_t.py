"""Student's t against published tables and against what defines a quantile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ufork.analysis.student_t import quantile, two_sided_p

TABLE = {
    0.95: {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 9: 1.833, 30: 1.697},
    0.975: {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042},
}
"""Quantiles by share and degrees of freedom, as statistical tables print them."""


@pytest.mark.parametrize("share", TABLE)
def test_quantiles_are_those_of_the_tables(share):
    assert {n: round(quantile(share, n), 3) for n in TABLE[share]} == TABLE[share]


@given(degrees=st.integers(1, 60), share=st.floats(0.5, 0.9999))
def test_a_quantile_is_exceeded_with_the_probability_that_is_left(degrees, share):
    assert two_sided_p(quantile(share, degrees), degrees) == pytest.approx(2 * (1 - share), abs=1e-9)


def test_p_is_symmetric_and_between_0_and_1():
    assert two_sided_p(0.0, 2) == 1.0
    assert two_sided_p(-4.303, 2) == two_sided_p(4.303, 2) == pytest.approx(0.05, abs=1e-4)
    assert 0 <= two_sided_p(1e12, 2) < 1e-9
