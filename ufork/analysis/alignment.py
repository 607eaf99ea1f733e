"""How well two sets of features of the same N pairs agree: mutual nearest neighbours, debiased CKA, a linear probe.

Each is a number that needs no common space of the two sides. Widths and depths inflate all three, so they are read
beside their value for permuted pairs, where nothing is left but that inflation.

    features ND, ME of both sides -> prepared -> mutual_neighbours, debiased_cka, probe_r2, and the same permuted

Memory is that of the features, and of CHUNK_ROWS rows of similarities.

Shapes: N pairs, D and E widths of the two sides, K neighbours.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ufork.analysis.alignment_record import Score

CHUNK_ROWS = 1024
"""Rows of the N x N similarities that are held at once."""
PROBE_FOLDS = 5
"""Parts of the pairs; each is predicted by a probe that is fitted on the others."""
PROBE_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates of the ridge, relative to the mean variance of a feature."""


def prepared(features_ND: Tensor, *, clip_quantile: float = 0.95) -> Tensor:
    """Returns the features as Huh et al. compare them (arXiv 2405.07987): clipped, then with rows of length one.

    The limit is one for all: the mean over pairs of the quantile of a pair's absolute values. 1 clips nothing.
    """
    features_ND = features_ND.float()
    if clip_quantile < 1:
        limit = torch.quantile(features_ND.abs(), clip_quantile, dim=1).mean().item()
        features_ND = features_ND.clamp(-limit, limit)
    return F.normalize(features_ND, dim=1)


def nearest_neighbours(features_ND: Tensor, num_neighbours: int) -> Tensor:
    """Returns the pairs NK with the largest inner products to each, itself excluded."""
    neighbours = []
    for start in range(0, len(features_ND), CHUNK_ROWS):
        similarities_RN = features_ND[start : start + CHUNK_ROWS] @ features_ND.T
        rows_R = torch.arange(len(similarities_RN))
        similarities_RN[rows_R, start + rows_R] = -torch.inf
        neighbours.append(similarities_RN.topk(num_neighbours, dim=1).indices)
    return torch.cat(neighbours)


def shared_neighbours(first_NK: Tensor, second_NK: Tensor) -> float:
    """Returns the mean share of the first side's neighbours that are also the second's (Huh et al., section 2)."""
    is_shared_NKK = first_NK[:, :, None] == second_NK[:, None, :]
    return (is_shared_NKK.sum((1, 2)).float().mean() / first_NK.shape[1]).item()


def mutual_neighbours(first_ND: Tensor, second_NE: Tensor, *, num_neighbours: int, permutations: list[Tensor]) -> Score:
    """Compares the neighbours of prepared features; independent sides share K / (N - 1) of them."""
    first_NK, second_NK = (nearest_neighbours(side, num_neighbours) for side in (first_ND, second_NE))

    def permuted(permutation_N: Tensor) -> float:
        return shared_neighbours(first_NK, permutation_N.argsort()[second_NK[permutation_N]])

    return _against(permuted, shared_neighbours(first_NK, second_NK), permutations)


def debiased_cka(first_ND: Tensor, second_NE: Tensor, *, permutations: list[Tensor]) -> Score:
    """Returns linear CKA (arXiv 1905.00414) of HSIC's unbiased estimator (Song et al., JMLR 2012).

    Independent sides have 0 on average, and so has a side that does not vary.
    """
    first_ND, second_NE = (side.double() - side.double().mean(0) for side in (first_ND, second_NE))
    squared_scale = _hsic(first_ND, first_ND) * _hsic(second_NE, second_NE)

    def cka(second_NE: Tensor) -> float:
        return _hsic(first_ND, second_NE) / squared_scale**0.5 if squared_scale > 0 else 0.0

    return _against(lambda permutation_N: cka(second_NE[permutation_N]), cka(second_NE), permutations)


def _hsic(first_ND: Tensor, second_NE: Tensor) -> float:
    """Returns the unbiased HSIC of two linear kernels without forming them.

    (tr(K L) + 1'K1 1'L1 / ((N - 1)(N - 2)) - 2 / (N - 2) 1'K L1) / (N (N - 3)), K = X X^T and L = Y Y^T with zero
    diagonals.
    """
    number = len(first_ND)
    squares_N, other_squares_N = first_ND.square().sum(1), second_NE.square().sum(1)
    row_sums_N = first_ND @ first_ND.sum(0) - squares_N
    other_row_sums_N = second_NE @ second_NE.sum(0) - other_squares_N
    trace = (first_ND.T @ second_NE).square().sum() - (squares_N * other_squares_N).sum()
    sums = row_sums_N.sum() * other_row_sums_N.sum() / ((number - 1) * (number - 2))
    cross = 2 * (row_sums_N * other_row_sums_N).sum() / (number - 2)
    return ((trace + sums - cross) / (number * (number - 3))).item()


def probe_r2(first_ND: Tensor, second_NE: Tensor, *, permutations: list[Tensor]) -> Score:
    """Returns the share of the second side's variance that ridge regression predicts from the first, for unseen pairs.

    Pairs are divided into PROBE_FOLDS parts, each predicted by a fit on the others; the ridge that predicts best of
    PROBE_RIDGES is taken for all of them, for permuted pairs too. The mean of all pairs has 0; a worse prediction is
    negative.
    """
    fits = [_RidgeFit(first_ND.double(), fold, PROBE_FOLDS) for fold in range(PROBE_FOLDS)]

    def r2(second_NE: Tensor) -> float:
        total = (second_NE - second_NE.mean(0)).square().sum()
        errors_R = torch.stack([fit.errors(second_NE) for fit in fits]).sum(0)
        return (1 - errors_R.min() / total).item() if total > 0 else 0.0

    second_NE = second_NE.double()
    return _against(lambda permutation_N: r2(second_NE[permutation_N]), r2(second_NE), permutations)


class _RidgeFit:
    """Ridge regressions on all pairs but one fold, whose eigenvectors serve every ridge and every target."""

    def __init__(self, inputs_ND: Tensor, fold: int, num_folds: int) -> None:
        self.held_N = torch.arange(len(inputs_ND)) % num_folds == fold
        fitted = inputs_ND[~self.held_N]
        self.mean_D = fitted.mean(0)
        self.fitted_MD, self.held_HD = fitted - self.mean_D, inputs_ND[self.held_N] - self.mean_D
        values_D, self.vectors_DD = torch.linalg.eigh(self.fitted_MD.T @ self.fitted_MD)
        self.values_D = values_D.clamp(min=0)
        self.projected_HD = self.held_HD @ self.vectors_DD

    def errors(self, targets_NE: Tensor) -> Tensor:
        """Returns the sum of squared errors on the fold, by ridge."""
        fitted_ME, held_HE = targets_NE[~self.held_N], targets_NE[self.held_N]
        mean_E = fitted_ME.mean(0)
        moments_DE = self.vectors_DD.T @ (self.fitted_MD.T @ (fitted_ME - mean_E))
        scale = self.values_D.mean()
        errors = [
            (held_HE - mean_E - (self.projected_HD / (self.values_D + ridge * scale)) @ moments_DE).square().sum()
            for ridge in PROBE_RIDGES
        ]
        return torch.stack(errors)


def _against(permuted: Callable[[Tensor], float], score: float, permutations: list[Tensor]) -> Score:
    nulls = torch.tensor([permuted(permutation_N) for permutation_N in permutations], dtype=torch.float64)
    return Score(score=score, null_mean=nulls.mean().item(), null_std=nulls.std().item())
