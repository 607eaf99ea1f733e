"""What a part of the check reports while it runs.

Report.figure, check, goal, headline -> a message at once -> PartResult in the process that started the part

A *check* decides whether the part passes. A *goal* is a speed or a size that depends on the card: it is shown, and
decides nothing.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["running", "passed", "failed", "skipped"]


@dataclass(kw_only=True)
class PartResult:
    """Everything known of one part; written to the JSON file as it is."""

    status: Status = "running"
    seconds: float = 0.0
    headlines: list[str] = field(default_factory=list)
    """The main figures, for the table."""
    checks: list[dict[str, Any]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Reasons, by the name of the measurement that could not be made."""
    figures: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    output: str = ""
    """End of what the process of a failed part printed, with the stacks of its threads."""

    def take(self, message: tuple[str, Any]) -> None:
        """Takes in one message of a Report."""
        kind, content = message
        if kind in ("figures", "skipped"):
            getattr(self, kind).update(content)
        else:
            getattr(self, kind).append(content)

    @property
    def failed_checks(self) -> list[str]:
        """Descriptions of the checks that failed."""
        return [f"{check['name']}: {check['detail']}" for check in self.checks if not check["passed"]]

    def as_json(self) -> dict[str, Any]:
        """Returns its fields, without those that are empty."""
        return {name: value for name, value in asdict(self).items() if value not in ("", [], {})}


class Report:
    """Sends what a part has found; nothing is kept, so a part that dies later loses none of it."""

    def __init__(self, send: Callable[[tuple[str, Any]], None], *, deadline: float):
        """`deadline`: when the part is stopped, on the machine's monotonic clock."""
        self._send, self._deadline = send, deadline

    @property
    def seconds_left(self) -> float:
        """Time until the part is stopped."""
        return self._deadline - time.monotonic()

    def figure(self, name: str, value: Any) -> None:
        """Reports a measured value, or several in a dict."""
        self._send(("figures", {name: value}))

    def check(self, name: str, passed: bool, detail: str) -> None:
        """Reports something that has to hold; the part goes on, and fails at its end if it did not."""
        self._send(("checks", {"name": name, "passed": bool(passed), "detail": detail}))

    def goal(self, name: str, value: float, wanted: str, *, met: bool) -> None:
        """Reports a value with the goal for it, which decides nothing."""
        self._send(("goals", {"name": name, "value": value, "wanted": wanted, "met": bool(met)}))

    def skip(self, name: str, reason: str) -> None:
        """Reports a measurement that this machine does not allow."""
        self._send(("skipped", {name: reason}))

    def headline(self, text: str) -> None:
        """Adds a main figure to the part's line in the table."""
        self._send(("headlines", text))
