"""Rows of CSV and TSV files.

A TSV has no quoting: a quotation mark in it is one. In a CSV, quoted texts may go over several lines.
"""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from data_prep.inputs.skipped_input import SkippedInput
from ufork.errors import InputError

_LINE_CHARS = 2**20
"""A longer line is read in pieces, of which none is a row: no file without line ends is held in memory."""


def delimited_rows(path: Path, column_names: Sequence[str] | None) -> Iterator[dict[str, str] | SkippedInput]:
    """The rows of the file `path` by column.

    Args:
        path: a file that is a TSV by its name, or else a CSV.
        column_names: of a file that begins with a row; None takes the names from the first line.

    Raises:
        InputError: the file cannot be read, or has no line of names.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = iter(partial(file.readline, _LINE_CHARS), "")
            is_tsv = path.suffix.lower() == ".tsv"
            reader = csv.reader(lines, "excel-tab", quoting=csv.QUOTE_NONE) if is_tsv else csv.reader(lines)
            names = column_names or next(reader, None)
            if not names:
                raise InputError(f"{path}: is empty; expected a line with the names of the columns")
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
