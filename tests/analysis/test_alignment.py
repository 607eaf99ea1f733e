"""Agreement of two sets of features against brute force, and its values where they are known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ufork.analysis import alignment
from ufork.analysis.alignment import debiased_cka, mutual_neighbours, nearest_neighbours, prepared, probe_r2


def features(number, width, seed):
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed))


def permutations(number, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(number, generator=generator) for _ in range(count)]


def shared_by_brute_force(first, second, k):
    """Sorts all similarities of each pair in Python."""

    def neighbours(rows, i):
        others = [j for j in range(len(rows)) if j != i]
        return set(sorted(others, key=lambda j: -float(rows[i] @ rows[j]))[:k])

    return np.mean([len(neighbours(first, i) & neighbours(second, i)) / k for i in range(len(first))])


def hsic_by_brute_force(first, second):
    """The unbiased estimator with its matrices written out (Song et al., equation 5)."""
    kernel, other = (side @ side.T for side in (first, second))
    np.fill_diagonal(kernel, 0)
    np.fill_diagonal(other, 0)
    n, ones = len(first), np.ones(len(first))
    sums = (ones @ kernel @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return (np.trace(kernel @ other) + sums - 2 / (n - 2) * ones @ kernel @ other @ ones) / (n * (n - 3))


def ridge_by_brute_force(first, second, ridges, folds):
    """Solves the normal equations of every fold and ridge anew."""
    errors = []
    for ridge in ridges:
        total = 0.0
        for fold in range(folds):
            held = np.arange(len(first)) % folds == fold
            mean, target_mean = first[~held].mean(0), second[~held].mean(0)
            x, y = first[~held] - mean, second[~held] - target_mean
            moments = x.T @ x
            scale = np.trace(moments) / len(moments)
            weights = np.linalg.solve(moments + ridge * scale * np.eye(len(moments)), x.T @ y)
            total += (((first[held] - mean) @ weights + target_mean - second[held]) ** 2).sum()
        errors.append(total)
    return 1 - min(errors) / ((second - second.mean(0)) ** 2).sum()


@given(st.integers(6, 30), st.integers(1, 7), st.integers(1, 7), st.integers(1, 5), st.integers(0, 99))
def test_scores_equal_brute_force_for_true_and_permuted_pairs(number, width, other_width, k, seed):
    first, second = features(number, width, seed), features(number, other_width, seed + 100)
    shuffles = permutations(number)
    neighbours = mutual_neighbours(first, second, num_neighbours=k, permutations=shuffles)
    a, b = first.numpy(), second.numpy()
    assert neighbours.score == pytest.approx(shared_by_brute_force(a, b, k))
    nulls = [shared_by_brute_force(a, b[shuffle], k) for shuffle in shuffles]
    assert neighbours.null_mean == pytest.approx(np.mean(nulls))
    assert neighbours.null_std == pytest.approx(np.std(nulls, ddof=1))

    cka = debiased_cka(first, second, permutations=shuffles)
    a, b = (side.astype(np.float64) - side.astype(np.float64).mean(0) for side in (a, b))
    squared_scale = hsic_by_brute_force(a, a) * hsic_by_brute_force(b, b)
    if squared_scale > 1e-9:
        assert cka.score == pytest.approx(hsic_by_brute_force(a, b) / squared_scale**0.5, rel=1e-5, abs=1e-7)


def test_the_probe_equals_ridge_regression_solved_anew():
    first, second = features(40, 6, 0), features(40, 3, 1)
    second = second + first @ features(6, 3, 2)
    found = probe_r2(first, second, permutations=permutations(40))
    arguments = (alignment.PROBE_RIDGES, alignment.PROBE_FOLDS)
    a, b = first.double().numpy(), second.double().numpy()
    assert found.score == pytest.approx(ridge_by_brute_force(a, b, *arguments))
    nulls = [ridge_by_brute_force(a, b[shuffle], *arguments) for shuffle in permutations(40)]
    assert found.null_mean == pytest.approx(np.mean(nulls))


def test_features_agree_wholly_with_themselves():
    same = features(50, 8, 0)
    assert mutual_neighbours(same, same, num_neighbours=10, permutations=permutations(50)).score == 1
    assert debiased_cka(same, same, permutations=permutations(50)).score == pytest.approx(1)
    assert probe_r2(same, same, permutations=permutations(50)).score == pytest.approx(1, abs=1e-3)


def test_independent_features_agree_by_chance():
    first, second = features(2000, 8, 0), features(2000, 8, 1)
    shuffles = permutations(2000)
    neighbours = mutual_neighbours(first, second, num_neighbours=10, permutations=shuffles)
    chance = 10 / 1999
    spread = (chance / 10 / 2000) ** 0.5  # of a mean of 2,000 rows with 10 neighbours each
    assert neighbours.score == pytest.approx(chance, abs=5 * spread)
    assert neighbours.null_mean == pytest.approx(chance, abs=5 * spread)
    assert abs(debiased_cka(first, second, permutations=shuffles).score) < 0.01
    assert abs(probe_r2(first, second, permutations=shuffles).score) < 0.02


def test_neighbours_do_not_depend_on_the_chunk(monkeypatch):
    whole = nearest_neighbours(features(50, 4, 0), 7)
    monkeypatch.setattr(alignment, "CHUNK_ROWS", 8)
    assert torch.equal(nearest_neighbours(features(50, 4, 0), 7), whole)


def test_a_side_that_does_not_vary_agrees_with_nothing():
    constant, other = torch.ones(30, 4), features(30, 4, 0)
    assert debiased_cka(constant, other, permutations=permutations(30)).score == 0
    assert probe_r2(other, constant, permutations=permutations(30)).score == 0


def test_preparing_clips_at_the_mean_quantile_and_gives_rows_of_length_one():
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0], [1.0, -1.0, 1.0, -1.0, 1.0]])
    limit = (4.0 + 1.0) / 2  # the 0.75 quantiles of the absolute values
    found = prepared(rows, clip_quantile=0.75)
    clipped = rows.clamp(-limit, limit)
    torch.testing.assert_close(found, clipped / clipped.norm(dim=1, keepdim=True))
    torch.testing.assert_close(prepared(rows, clip_quantile=1), rows / rows.norm(dim=1, keepdim=True))
