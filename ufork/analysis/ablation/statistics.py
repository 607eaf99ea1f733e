"""Statistics of a suite: what its arms scored, and whether they differ.

TrialResult of each arm and seed -> Estimate: mean and standard error over seeds, per arm and score
                                 -> Difference: arm minus baseline, paired by seed, with a paired t-test

A seed decides initial weights and the order of samples for all arms alike. Pairing by seed removes what arms of one
seed have in common from the standard error of their difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from ufork.analysis.ablation.trial_result import TrialResult
from ufork.analysis.student_t import two_sided_p


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean of a figure over seeds."""

    mean: float
    standard_error: float | None
    """Sample standard deviation over the square root of the number of seeds; None for one seed."""
    num_seeds: int

    @property
    def p(self) -> float | None:
        """Two-sided p value of a t-test of mean 0; None where the values do not differ or there is only one."""
        return two_sided_p(self.mean / self.standard_error, self.num_seeds - 1) if self.standard_error else None

    def describe(self, *, signed: bool = False) -> str:
        """Returns mean ± standard error."""
        middle = f"{self.mean:+.3f}" if signed else f"{self.mean:.3f}"
        return middle if self.standard_error is None else f"{middle} ± {self.standard_error:.3f}"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Score of one arm minus that of another, over the seeds that both have."""

    arm: str
    baseline: str
    score: str
    estimate: Estimate


def estimate(values: Sequence[float]) -> Estimate:
    """Returns mean and standard error of at least one value."""
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else None
    return Estimate(mean=mean(values), standard_error=error, num_seeds=len(values))


def score_names(results: Sequence[TrialResult]) -> list[str]:
    """Returns the names of all scores, in the order of a result that has the most."""
    fullest_first = sorted(results, key=lambda result: -len(result.scores))
    return list(dict.fromkeys(score.name for result in fullest_first for score in result.scores))


def arms_of(results: Sequence[TrialResult]) -> list[str]:
    """Returns the names of all arms, in the order of the results."""
    return list(dict.fromkeys(result.arm for result in results))


def estimates(results: Sequence[TrialResult], arm: str) -> dict[str, Estimate]:
    """Returns the estimate of each score that `arm` has."""
    found = {name: list(_by_seed(results, arm, name).values()) for name in score_names(results)}
    return {name: estimate(values) for name, values in found.items() if values}


def differences(results: Sequence[TrialResult], baseline: str) -> list[Difference]:
    """Returns each other arm's differences from `baseline`, by score; none where both have no seed in common."""
    found = []
    for arm in arms_of(results):
        for name in score_names(results) if arm != baseline else ():
            ours, theirs = _by_seed(results, arm, name), _by_seed(results, baseline, name)
            if common := [ours[seed] - theirs[seed] for seed in ours if seed in theirs]:
                found.append(Difference(arm=arm, baseline=baseline, score=name, estimate=estimate(common)))
    return found


def _by_seed(results: Sequence[TrialResult], arm: str, score: str) -> dict[int, float]:
    return {
        result.seed: result.values_by_score[score]
        for result in results
        if result.arm == arm and score in result.values_by_score
    }
