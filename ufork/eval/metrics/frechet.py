"""Distance of two sets of pictures: the Fréchet distance between Gaussians fitted to their features.

Symbols of the shapes: N pictures, F features.
"""

import numpy as np
from numpy.typing import NDArray


def frechet_distance(first_NF: NDArray[np.floating], second_NF: NDArray[np.floating]) -> float:
    """Returns |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and Landau 1982) of two sets of features.

    Each set has at least 2 pictures. The distance between two samples of one population is above 0 and falls with their
    size: compare it with the distance of real pictures from real pictures, with the same sizes.
    """
    gap_F = first_NF.mean(axis=0, dtype=np.float64) - second_NF.mean(axis=0, dtype=np.float64)
    first_FF, second_FF = _covariance(first_NF), _covariance(second_NF)
    root_FF = _root(first_FF)
    # tr((S1 S2)^(1/2)) = tr((S1^(1/2) S2 S1^(1/2))^(1/2)): the right side is symmetric, so its eigenvalues are real.
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root_FF @ second_FF @ root_FF), 0, None)).sum()
    return float(max(gap_F @ gap_F + np.trace(first_FF) + np.trace(second_FF) - 2 * cross, 0.0))


def _covariance(features_NF: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.atleast_2d(np.cov(features_NF, rowvar=False, dtype=np.float64))


def _root(matrix_FF: NDArray[np.float64]) -> NDArray[np.float64]:
    values_F, vectors_FF = np.linalg.eigh(matrix_FF)
    return np.asarray((vectors_FF * np.sqrt(np.clip(values_F, 0, None))) @ vectors_FF.T)
