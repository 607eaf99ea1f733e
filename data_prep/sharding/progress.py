"""Progress of a long task, logged every few seconds."""

import logging
import time

_INTERVAL_SECONDS = 10.0

_logger = logging.getLogger(__name__)


class Progress:
    """Logs the amount done, the rate and the time left."""

    def __init__(self, what: str, *, unit: str, total: int | None = None) -> None:
        """Starts the clock.

        Args:
            what: name of the task.
            unit: name of what is counted.
            total: number of units, if known.
        """
        self._what, self._unit, self._total = what, unit, total
        self._start = self._logged = time.monotonic()

    def reach(self, done: int, note: str = "") -> None:
        """Logs that `done` units are done, with `note`, unless the last line is only a few seconds old."""
        now = time.monotonic()
        if now - self._logged < _INTERVAL_SECONDS:
            return
        self._logged, left = now, ""
        if self._total and done:
            left = f"{(self._total - done) * (now - self._start) / done / 60:.1f} min left"
        self._log(done, left, note)

    def finish(self, done: int, note: str = "") -> None:
        """Logs the final amount and `note`."""
        self._log(done, note)

    def _log(self, done: int, *notes: str) -> None:
        rate = done / max(time.monotonic() - self._start, 1e-9)
        figures = (f"{done:,} {self._unit}", f"{rate:,.0f}/s", *filter(None, notes))
        _logger.info("%s: %s", self._what, ", ".join(figures))
