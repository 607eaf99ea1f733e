"""Whether a run came out as recorded.

recorded values of a score, value now -> is it in the range in which another run of the same kind would be?

The range is the one-sided 95% prediction interval of a normal distribution for one more run, from the mean m and the
sample standard deviation s of n runs: m - t s sqrt(1 + 1/n), with Student's t of n - 1 degrees of freedom. So one run
in twenty that is like the recorded ones is called worse, for each score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt
from statistics import mean, stdev

from pipelines.verification.recorded import LEAST_RUNS, SCORES, Measured
from ufork.analysis.student_t import quantile

SHARE = 0.95
"""Share of runs like the recorded ones that are above the lowest value."""
LEAST_SPREAD = 0.01
"""Smallest standard deviation that is assumed: runs that agree more closely do so by chance."""


class Verdict(StrEnum):
    """Result of comparing one score."""

    AS_RECORDED = "as recorded"
    BETTER = "better than recorded"
    WORSE = "worse than recorded"
    NOT_RECORDED = "not recorded"
    """Fewer than `LEAST_RUNS` runs are."""
    MISSING = "missing"
    """It is recorded, and this run has none."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One score."""

    score: str
    recorded: list[float]
    lowest: float | None
    """Lowest value that counts as recorded."""
    now: float | None
    verdict: Verdict


def judge(measured: Measured, scores: Mapping[str, float]) -> list[Judged]:
    """Compares the scores of a run with those recorded on its class of machine."""
    return [_judged(score, measured.values(score), scores.get(score)) for score in SCORES]


def passes(judged: Sequence[Judged]) -> bool:
    """Whether a run came out as recorded: some score is comparable, and none is worse or missing."""
    verdicts = {each.verdict for each in judged}
    return bool(verdicts & {Verdict.AS_RECORDED, Verdict.BETTER}) and not verdicts & {Verdict.WORSE, Verdict.MISSING}


def _judged(score: str, recorded: list[float], now: float | None) -> Judged:
    if len(recorded) < LEAST_RUNS:
        return Judged(score=score, recorded=recorded, lowest=None, now=now, verdict=Verdict.NOT_RECORDED)
    middle, half = mean(recorded), _half_range(recorded)
    if now is None:
        verdict = Verdict.MISSING
    elif now < middle - half:
        verdict = Verdict.WORSE
    else:
        verdict = Verdict.BETTER if now > middle + half else Verdict.AS_RECORDED
    return Judged(score=score, recorded=recorded, lowest=middle - half, now=now, verdict=verdict)


def _half_range(recorded: Sequence[float]) -> float:
    n = len(recorded)
    return quantile(SHARE, n - 1) * max(stdev(recorded), LEAST_SPREAD) * sqrt(1 + 1 / n)
