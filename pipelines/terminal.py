"""Printing that cannot fail: text from elsewhere, and streams that are closed, full or of another encoding.

Names, messages and lines of logs may contain control characters, which are escaped. Credentials in URLs are not printed
either: with messages of other libraries, only this place sees them all.
"""

import logging
import os
import sys
from typing import TextIO

from ufork.redaction import redacted

LINE_ENDS = "\n\t"


def printable(text: str, *, keep: str = "") -> str:
    """Returns `text` with credentials hidden and control characters escaped.

    So no file can move the cursor or recolour a terminal.

    Args:
        text: any text: names, messages, lines of logs.
        keep: control characters to leave as they are, such as line ends.
    """
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in redacted(text))


def show(text: object) -> None:
    """Prints a text with its lines, other control characters escaped."""
    print(printable(str(text), keep=LINE_ENDS))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class PrintableFormatter(logging.Formatter):
    """Formats log records without control characters, except line ends."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message, with a traceback where there is one."""
        return printable(super().format(record), keep=LINE_ENDS)


def log_to_terminal() -> None:
    """Sends log records from level INFO to standard error, unless logging is configured already.

    A record that cannot be written, as wandb's on a full disk, is lost; Python would print a traceback for each.
    """
    logging.raiseExceptions = False
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def make_streams_safe() -> None:
    """Opens standard streams that are closed, on /dev/null, and lets the others print what their encoding lacks.

    The next file that is opened would otherwise get the number of a closed stream, and what libraries print would be
    written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            file = os.open(os.devnull, os.O_RDWR)
            if file != number:
                os.dup2(file, number)
                os.close(file)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))
        elif number:
            stream.reconfigure(errors="backslashreplace")


def discard_unwritable(stream: TextIO) -> OSError | None:
    """Returns why what was printed to `stream` cannot be written, and discards it then; None if it is written.

    Without that, Python would report it once more at exit, by an exit code of its own.
    """
    try:
        stream.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        return error
    return None
