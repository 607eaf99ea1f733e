"""Means, standard errors, tests and paired differences against values computed by hand."""

from statistics import stdev

import pytest

from tests.analysis.ablation.trials import arm, trial
from ufork.analysis.ablation.statistics import differences, estimate, estimates, score_names


def test_mean_standard_error_and_p_of_three_seeds():
    """d = 0.1, 0.2, 0.3: s = 0.1, standard error 0.1 / sqrt(3), t = 3.4641, p = 1 - t / sqrt(2 + t^2) of 2 degrees."""
    found = estimate([0.1, 0.2, 0.3])
    assert found.mean == pytest.approx(0.2) and found.standard_error == pytest.approx(0.1 / 3**0.5)
    assert found.p == pytest.approx(1 - 12**0.5 / 14**0.5) == pytest.approx(0.0742, abs=1e-4)


def test_one_seed_has_no_error_and_no_test():
    found = estimate([0.7])
    assert (found.mean, found.standard_error, found.p) == (0.7, None, None)
    assert found.describe() == "0.700" and estimate([0.7, 0.8]).describe(signed=True) == "+0.750 ± 0.050"


def test_values_without_spread_are_not_tested():
    assert estimate([0.5, 0.5]).p is None and estimate([0.5, 0.5]).standard_error == 0


def test_differences_are_paired_by_seed():
    """Seeds differ by much more than arms: unpaired, the difference would be lost in them."""
    results = [*arm("shared", 0.1, 0.5, 0.9), *arm("y", 0.21, 0.60, 1.01)]
    (found,) = differences(results, "shared")
    assert (found.arm, found.baseline, found.score) == ("y", "shared", "scenes/answers")
    assert found.estimate.mean == pytest.approx(0.32 / 3)
    assert found.estimate.standard_error == pytest.approx(stdev([0.11, 0.10, 0.11]) / 3**0.5)
    assert found.estimate.p < 0.01


def test_only_common_seeds_and_scores_are_compared():
    results = [*arm("shared", 0.1, 0.5), *arm("y", 0.2), trial("expert", 0, answers=None, drawings=0.5)]
    (found,) = differences(results, "shared")
    assert found.arm == "y" and found.estimate.num_seeds == 1
    assert differences(results, "absent") == []


def test_scores_are_in_the_order_of_a_result_that_has_all():
    results = [trial("expert", answers=None, drawings=0.5), trial("y", drawings=0.5, loss=2.0)]
    assert score_names(results) == ["scenes/answers", "scenes/drawings", "heldout/generation"]


def test_estimates_leave_out_scores_that_an_arm_lacks():
    results = [trial("expert", 0, answers=None, drawings=0.5), *arm("y", 0.2, 0.4)]
    assert estimates(results, "expert").keys() == {"scenes/drawings"}
    assert estimates(results, "y")["scenes/answers"].mean == pytest.approx(0.3)
