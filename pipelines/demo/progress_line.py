"""The one line that shows how far a demo is: redrawn in place on a terminal, printed now and then elsewhere."""

import shutil
import time
from typing import TextIO

from pipelines.terminal import printable

INTERVAL_SECONDS = 30.0
"""Time between two lines where the output is no terminal."""
ERASE_LINE = "\r\x1b[K"


class ProgressLine:
    """Writes the line to `out`."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._is_terminal = out, out.isatty()
        self._written = float("-inf")
        self._is_open = False

    def show(self, text: str, *, now: bool = False) -> None:
        """Shows `text`, cut to the width of a terminal; elsewhere only if the last line is old, or `now`."""
        seconds = time.monotonic()
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._write(ERASE_LINE + printable(text)[:width])
            self._is_open = True
        elif now or seconds - self._written >= INTERVAL_SECONDS:
            self._written = seconds
            self._write(printable(text) + "\n")

    def clear(self) -> None:
        """Makes room for other output."""
        if self._is_open:
            self._write(ERASE_LINE)
        self._is_open = False

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def duration(seconds: float) -> str:
    """Returns seconds as people read them: 45 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
