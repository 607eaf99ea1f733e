"""Text from elsewhere, made safe to print: names, messages and lines of logs may contain control characters.

Credentials in URLs are not printed either: with messages of other libraries, only this place sees them all.
"""

import logging

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
    """Sends log records from level INFO to standard error, unless logging is configured already."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
