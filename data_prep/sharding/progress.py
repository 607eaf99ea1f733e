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
            left = (
                f"{(self._total - done) * (now - self._start) / done / 60:.1f} min left" if self._total and done else ""
            )
            self._tell(done, left, note)

    def finish(self, done: int, note: str = "") -> None:
        """Tells how it ended."""
        self._tell(done, "", note)

    def _tell(self, done: int, *notes: str) -> None:
        rate = done / max(time.monotonic() - self._start, 1e-9)
        parts = (f"{done:,} {self._unit}", f"{rate:,.0f}/s", *filter(None, notes))
        _logger.info("%s: %s", self._what, ", ".join(parts))
