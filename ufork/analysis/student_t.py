"""Student's t distribution for whole degrees of freedom, in closed form.

t, degrees of freedom -> P(|T| < t), by the finite series 26.7.3 and 26.7.4 of Abramowitz and Stegun -> p, quantile
"""

from math import atan, cos, pi, sin, sqrt

BISECTIONS = 80
"""Halvings of the interval in which a quantile lies; more than a float has digits."""


def two_sided_p(t: float, degrees: int) -> float:
    """Returns the probability that |T| is at least |t|.

    Args:
        t: statistic, such as mean over standard error.
        degrees: degrees of freedom, at least 1.
    """
    return max(0.0, 1.0 - _share_within(abs(t), degrees))


def quantile(share: float, degrees: int) -> float:
    """Returns the t below which T lies with probability `share`, which is in [0.5, 1)."""
    assert 0.5 <= share < 1 and degrees >= 1, (share, degrees)
    low, high = 0.0, 1.0
    while _share_below(high, degrees) < share:
        high *= 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_below(middle, degrees) < share else (low, middle)
    return high


def _share_below(t: float, degrees: int) -> float:
    return (1 + _share_within(t, degrees)) / 2


def _share_within(t: float, degrees: int) -> float:
    """Returns P(|T| < t) for t of at least 0."""
    angle, is_odd = atan(t / sqrt(degrees)), degrees % 2
    total, term = 0.0, cos(angle) if is_odd else 1.0
    for number in range(1 + is_odd, degrees, 2):
        total += term
        term *= number / (number + 1) * cos(angle) ** 2
    return 2 / pi * (angle + sin(angle) * total) if is_odd else sin(angle) * total
