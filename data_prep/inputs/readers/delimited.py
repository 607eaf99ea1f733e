"""Reads CSV and TSV files row by row with the standard library's csv module.

A CSV may have quoted texts that span several lines. A TSV has no quoting: quotation marks in it are part of the text.
"""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from data_prep.inputs.skipped_input import SkippedInput
from ufork.errors import InputError

_LINE_CHARS = 2**20
"""Longest line that is read whole; longer ones are cut into pieces that are counted as unreadable rows."""


def delimited_rows(path: Path, column_names: Sequence[str] | None) -> Iterator[dict[str, str] | SkippedInput]:
    """Yields the rows of the file `path` by column, and a SkippedInput for each that cannot be read.

    Args:
        path: a TSV if its suffix is .tsv, otherwise a CSV.
        column_names: names for a file without a header line; None takes them from the first line.

    Raises:
        InputError: the file cannot be read, or is empty.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = iter(partial(file.readline, _LINE_CHARS), "")
            is_tsv = path.suffix.lower() == ".tsv"
            reader = csv.reader(lines, "excel-tab", quoting=csv.QUOTE_NONE) if is_tsv else csv.reader(lines)
            names = column_names or next(reader, None)
            if not names:
                raise InputError(f"{path}: is empty; expected a line with the column names")
            yield from _rows(reader, names)
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _rows(reader: Iterator[list[str]], names: Sequence[str]) -> Iterator[dict[str, str] | SkippedInput]:
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield SkippedInput("row that cannot be read")
            continue
        if len(row) == len(names):
            yield dict(zip(names, row, strict=True))
        elif row:
            yield SkippedInput("row of more or fewer columns than the first line")
