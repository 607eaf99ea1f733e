"""What one check has found, and what every check is given.

Check = Surroundings -> Finding
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Mark(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    ABSENT = "absent"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One entry of the page."""

    name: str
    found: str
    mark: Mark = Mark.OK
    instead: str = ""
    """What ufork does without it, or with it where that is worth telling: a sentence that begins after "ufork"."""
    remedy: str = ""
    """How to get or mend it."""
    required: bool = False
    """Whether ufork cannot do without it."""

    @property
    def breaks(self) -> bool:
        """Whether ufork cannot run for it."""
        return self.required and self.mark is not Mark.OK


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where checks look."""

    environment: Mapping[str, str]
    """PATH is searched for programs, and programs run with it."""
    folder: Path
    """Where runs are kept, whether it exists or not."""
    home: Path
    """Of the user."""
    has_gpu: bool = False
    """Whether the machine has an NVIDIA device."""
    timeout_seconds: float = 30.0
    """How long one program may take to answer."""


Check = Callable[[Surroundings], Finding]
"""Named for what it looks at: its function's name, with spaces, stands in where it cannot tell."""
