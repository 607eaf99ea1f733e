"""Tables of nvidia-smi: the command that prints one, and its rows.

nvidia-smi mixes its rows with warnings, for example about a damaged infoROM, and prints "[N/A]" for what a GPU lacks.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass

PROGRAM = "nvidia-smi"


@dataclass(frozen=True)
class Table:
    """What nvidia-smi has printed."""

    rows: list[dict[str, str]]
    """Values by field."""
    remarks: list[str]
    """Lines that are no rows."""


def table_command(kind: str, fields: Sequence[str]) -> list[str]:
    """Returns the command that prints `fields` of each gpu, compute-apps or the like (`kind`)."""
    return [PROGRAM, f"--query-{kind}={','.join(fields)}", "--format=csv,noheader,nounits"]


def parse_table(printed: str, fields: Sequence[str]) -> Table:
    """Returns the rows of `table_command`'s output; lines with another number of values are remarks."""
    rows, remarks = [], []
    for line in filter(str.strip, printed.splitlines()):
        values = [value.strip() for value in next(csv.reader([line]))]
        if len(values) == len(fields):
            rows.append(dict(zip(fields, values, strict=True)))
        else:
            remarks.append(line.strip())
    return Table(rows, remarks)


def number(text: str) -> float | None:
    """Returns a value as a number; None for what a GPU does not report, such as "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return None
