"""Reading the metrics of a phase: RUN/phases/NAME/metrics.jsonl -> one dictionary per line, damaged lines skipped.

A run may be killed while it writes, and disks fail, but no line is needed to resume or to report on the others. So a
line that is empty, cut, binary, or without a step is counted and skipped, and a file that cannot be read is empty.
"""

import errno
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ufork.files import read_bounded

MAX_METRICS_BYTES, MAX_LINES = 2**28, 2_000_000
"""Limits of a metrics file; 2**28 bytes are about 700,000 lines, which take a gigabyte of memory."""


@dataclass
class Metrics:
    """The readable entries of a metrics file."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    """Entries in the order of the file, each with an integer `step`."""
    fault: str = ""
    """Description of what could not be read; empty if everything could."""


def read_metrics(path: Path, *, limited: bool = True) -> Metrics:
    """Reads the lines of `path` that are whole; none if there is no such file, or if it is beyond the limits.

    Args:
        path: the file.
        limited: whether the limits apply; a run that resumes must not lose its own metrics to them.
    """
    try:
        content = read_bounded(path, MAX_METRICS_BYTES if limited else sys.maxsize)
        if limited and (num_lines := content.count(b"\n")) > MAX_LINES:
            raise OSError(errno.EFBIG, f"{num_lines} lines, more than {MAX_LINES}")
    except FileNotFoundError:
        return Metrics()
    except OSError as error:
        return Metrics(fault=f"{path}: cannot be read ({error.strerror}); skipped")
    lines = content[: content.rfind(b"\n") + 1].splitlines()  # the last line may still be being written
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    num_damaged = len(lines) - len(entries)
    return Metrics(entries, f"{path}: {num_damaged} lines are damaged and were skipped" if num_damaged else "")


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    has_step = isinstance(entry, dict) and type(entry.get("step")) is int and entry["step"] >= 0
    return entry if has_step else None
