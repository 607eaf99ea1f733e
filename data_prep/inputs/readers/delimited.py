"""Reads CSV and TSV files row by row with the standard library's csv module.

A CSV may have quoted texts that span several lines. A TSV has no quoting: quotation marks in it are part of the text.
"""

import codecs
import csv
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from data_prep.inputs.skipped_input import SkippedInput
from ufork.errors import InputError

UNREADABLE_ROW = "row with a quotation mark that is not closed or not doubled, or with a text that is too large"
_LINE_CHARS = 2**20
"""Longest line that is read whole; longer ones are cut into pieces that are counted as unreadable rows."""
_ROW_CHARS = 2**22
"""Longest row of several lines."""


def delimited_rows(
    path: Path, column_names: Sequence[str] | None, check: Callable[[Sequence[str]], None]
) -> Iterator[dict[str, str] | SkippedInput]:
    """Yields the rows of the file `path` by column, and a SkippedInput for each that cannot be read.

    Args:
        path: a TSV if its suffix is .tsv, otherwise a CSV; in UTF-8, or UTF-16 with a byte order mark.
        column_names: names for a file without a header line; None takes them from the first line.
        check: called with the column names, before any row.

    Raises:
        InputError: the file cannot be read, or is empty; or `check` raised it.
    """
    try:
        with open(path, encoding=_encoding(path), errors="surrogateescape", newline="") as file:
            lines = _Lines(file)
            if path.suffix.lower() == ".tsv":
                reader = csv.reader(lines, "excel-tab", quoting=csv.QUOTE_NONE)
            else:
                reader = csv.reader(lines, strict=True)
            names = column_names or next(filter(None, reader), None)
            if not names:
                raise InputError(f"{path}: is empty; expected a line with the column names")
            if any("\0" in name for name in names):
                raise InputError(f"{path}: its first line contains NUL; convert the file to UTF-8, as with `iconv`")
            check(names)
            yield from _rows(reader, lines, names)
    except UnicodeError as error:
        raise InputError(f"{path}: cannot be read ({error}); convert it to UTF-8") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


class _Lines:
    """Lines of a file. Those of a row that cannot be read are given once more, except the first."""

    def __init__(self, file: IO[str]) -> None:
        self._lines = iter(partial(file.readline, _LINE_CHARS), "")
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self._row_chars = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._row.append(line)
        self._row_chars += len(line)
        if self._row_chars > _ROW_CHARS:
            raise csv.Error("row too long")
        return line

    def start_row(self) -> None:
        self._row, self._row_chars = [], 0

    def repeat(self) -> None:
        """Gives the lines of the current row again, from its second one on."""
        self._again.extendleft(reversed(self._row[1:]))


def _rows(reader: Iterator[list[str]], lines: _Lines, names: Sequence[str]) -> Iterator[dict[str, str] | SkippedInput]:
    while True:
        lines.start_row()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            # A quotation mark that is not closed would otherwise take the rows behind it along.
            lines.repeat()
            yield SkippedInput(UNREADABLE_ROW)
            continue
        if len(row) == len(names):
            yield dict(zip(names, row, strict=True))
        elif row:
            yield SkippedInput("row of more or fewer columns than the first line")
