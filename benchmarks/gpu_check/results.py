"""The results of all parts: one JSON file, written whole after every message, and a table for people."""

import json
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.report import PartResult
from ufork.files import write_whole

WIDTH, MARGIN = 120, 38
"""Characters of a line of the table, and before its figures."""


@dataclass(kw_only=True)
class Results:
    """The results of one run of the check."""

    path: Path
    cpu: bool
    parts: dict[str, PartResult] = field(default_factory=dict)
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    _began: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> bool:
        """Whether no part has failed, or is still running."""
        return all(part.status in ("passed", "skipped") for part in self.parts.values())

    def write(self) -> None:
        """Writes the file.

        Raises:
            StorageError: it cannot be written.
        """
        content: dict[str, Any] = {
            "started": self.started,
            "device": "cpu" if self.cpu else "cuda",
            "passed": self.passed,
            "seconds": round(time.monotonic() - self._began, 1),
            "parts": {name: part.as_json() for name, part in self.parts.items()},
        }
        write_whole(self.path, json.dumps(content, indent=1, default=str))

    def table(self) -> str:
        """Returns, per part, its seconds, how it ended, its main figures, its fault and the goals that it missed."""
        lines = [f"{'part':18}{'seconds':>8}"]
        for name, part in self.parts.items():
            faults = part.error.splitlines()[:1]
            goals = [f"goal missed: {g['name']}: {g['value']:.3g} ({g['wanted']})" for g in part.goals if not g["met"]]
            told = [*textwrap.wrap("; ".join([*part.headlines, *faults]), WIDTH - MARGIN), *goals] or [""]
            lines.append(f"{name:18}{part.seconds:8.1f}  {part.status:8}  {told[0]}".rstrip())
            lines += [" " * MARGIN + line for line in told[1:]]
        count = {s: sum(part.status == s for part in self.parts.values()) for s in ("passed", "failed", "skipped")}
        return "\n".join([*lines, ", ".join(f"{number} {status}" for status, number in count.items())])
