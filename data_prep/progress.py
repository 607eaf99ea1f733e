"""How far a long work is, told now and then."""

import logging
import time

_SECONDS_BETWEEN = 10.0

_logger = logging.getLogger(__name__)


class Progress:
    """Logs what was reached, how fast, and how long the rest will take."""

    def __init__(self, what: str, *, unit: str, total: int | None = None) -> None:
        """Starts the clock; `total` is the number of units where it is known."""
        self._what, self._unit, self._total = what, unit, total
        self._start = self._told = time.monotonic()

    def reach(self, done: int, note: str = "") -> None:
        """Tells it when the last word is some seconds old; `note` stands behind."""
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN:
            self._told = now
            _logger.info("%s", self._line(done, now - self._start, note))

    def finish(self, done: int, note: str = "") -> None:
        """Tells how it ended."""
        _logger.info("%s", self._line(done, time.monotonic() - self._start, note))

    def _line(self, done: int, seconds: float, note: str) -> str:
        rate = done / max(seconds, 1e-9)
        line = f"{self._what}: {done:,} {self._unit}, {rate:,.0f}/s"
        if self._total and done < self._total and rate:
            line = f"{line}, {(self._total - done) / rate / 60:.1f} min left of {self._total:,}"
        return f"{line}{', ' if note else ''}{note}"
