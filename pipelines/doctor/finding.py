"""The result of one check.

Check = Surroundings -> Finding
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pipelines.commands import NoAnswer, Reason
from pipelines.doctor.surroundings import Surroundings


class Mark(StrEnum):
    """Outcome of a check."""

    OK = "ok"
    ABSENT = "absent"
    PROBLEM = "problem"
    SLOW = "slow"
    """The check timed out, perhaps on a busy machine: nothing is known to be broken."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One entry of the page."""

    name: str
    found: str
    mark: Mark = Mark.OK
    instead: str = ""
    """Consequence for ufork, as a sentence that continues "ufork": what it does without it, or with it."""
    remedy: str = ""
    """Steps to get or fix it."""
    required: bool = False
    """Whether ufork cannot run without it."""

    @property
    def breaks(self) -> bool:
        """Whether ufork cannot run because of it."""
        return self.required and self.mark in (Mark.ABSENT, Mark.PROBLEM)


Check = Callable[[Surroundings], Finding]
"""The function's name, with spaces, names a check that raises or times out."""


def mark_of(reason: NoAnswer) -> Mark:
    """Returns how to mark a program or package that gave no answer."""
    return Mark.SLOW if reason.reason is Reason.TIMED_OUT else Mark.PROBLEM
