"""How much of a demo is done, and how long the rest takes: arithmetic, without clock or terminal.

expected seconds of each verb, seconds so far, share where the verb knows it -> percent of the whole, seconds left
"""

from collections.abc import Sequence

LINEAR_SHARE = 0.9
"""Share of a verb up to which its time counts linearly; a verb that takes longer than expected then slows down."""
TRUSTED_SHARE = 0.05
"""Share that a verb must have gained before its own speed replaces the expected time."""
STEADY_SECONDS = 30.0
"""Weight of the expectation against measured times: verbs of a few seconds hardly change what the later ones take."""


class DemoProgress:
    """Progress over all verbs; the percent never decreases, and is 100 after the last."""

    def __init__(self, expected_seconds: Sequence[float]) -> None:
        """Starts before the first verb.

        Args:
            expected_seconds: of each verb, in order; each above 0.
        """
        self._expected = list(expected_seconds)
        self._measured: list[tuple[float, float]] = []
        """(seconds, expected seconds) of finished verbs whose time says how fast the machine is."""
        self._number, self._percent = 0, 0.0
        self._restart()

    def _restart(self) -> None:
        self._seconds = self._share = 0.0
        self._first_share: float | None = None

    @property
    def percent(self) -> float:
        """Percent of the expected time of all verbs."""
        return self._percent

    @property
    def seconds_left(self) -> float:
        """Estimate of the time until the last verb has ended."""
        if self._number == len(self._expected):
            return 0.0
        later = sum(self._expected[self._number + 1 :]) * self._slowness
        gained = self._share - (self._first_share or 0.0)
        if self._first_share is not None and gained >= TRUSTED_SHARE:
            return (1 - self._share) * self._seconds / gained + later
        if self._first_share is not None:
            return (1 - self._share) * self._expected[self._number] + later
        return max(self._expected_now - self._seconds, (1 - self._share) * self._expected_now) + later

    def advance(self, seconds: float, share: float | None = None) -> None:
        """Notes how far the current verb is.

        Args:
            seconds: since it started.
            share: share of it that is done; None where only the time is known.
        """
        self._seconds = seconds
        if share is None:
            share = share_by_time(seconds / self._expected_now)
        elif self._first_share is None:
            self._first_share = share
        self._share = max(self._share, min(share, 1.0))
        self._reach(self._share)

    def finish(self, *, counts: bool = True) -> None:
        """Ends the current verb.

        Args:
            counts: whether its time tells how fast the machine is: not where it had been done before.
        """
        if counts and self._first_share is None:
            self._measured.append((self._seconds, self._expected[self._number]))
        self._reach(1.0)
        self._number += 1
        self._restart()
        if self._number == len(self._expected):
            self._percent = 100.0

    def _reach(self, share: float) -> None:
        done = sum(self._expected[: self._number]) + self._expected[self._number] * share
        self._percent = max(self._percent, min(100.0, 100 * done / sum(self._expected)))

    @property
    def _expected_now(self) -> float:
        return self._expected[self._number] * self._slowness

    @property
    def _slowness(self) -> float:
        """Ratio of measured to expected times so far."""
        seconds, expected = (
            sum(times) for times in zip((STEADY_SECONDS, STEADY_SECONDS), *self._measured, strict=True)
        )
        return seconds / expected


def share_by_time(ratio: float) -> float:
    """Returns the share of a verb after `ratio` of its expected time: grows for ever and stays below 1."""
    return ratio if ratio < LINEAR_SHARE else 1 - (1 - LINEAR_SHARE) * LINEAR_SHARE / ratio
