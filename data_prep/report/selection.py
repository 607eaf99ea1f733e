"""Counts of kept and dropped records, with the reasons and examples.

each record is kept or dropped  ->  Selection of a job  ->  sum over the jobs in order  ->  Selection of the collection
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from data_prep.report.statistics import count, printable

MAX_EXAMPLES = 5
"""Records that are named per reason: the first ones."""


@dataclass
class Selection:
    """Counts of records. Those of several jobs are added with `+`, in the order of the jobs."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of records."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> ids of the first records, at most MAX_EXAMPLES."""

    @property
    def num_records(self) -> int:
        """Number of records, kept and dropped."""
        return self.kept + self.dropped.total()

    def drop(self, record_id: str, reason: str) -> None:
        """Counts a dropped record."""
        self._drop(reason, 1, [record_id])

    def _drop(self, reason: str, number: int, record_ids: list[str]) -> None:
        named = self.examples.setdefault(count(self.dropped, reason, number), [])
        named += map(printable, record_ids[: MAX_EXAMPLES - len(named)])

    def __add__(self, other: "Selection") -> "Selection":
        examples = {reason: list(names) for reason, names in self.examples.items()}
        both = Selection(self.kept + other.kept, Counter(self.dropped), examples)
        for reason, number in other.dropped.items():
            both._drop(reason, number, other.examples[reason])
        return both

    def to_dict(self) -> dict[str, Any]:
        """Returns values for JSON, the most frequent reason first."""
        reasons = sorted(self.dropped, key=lambda reason: (-self.dropped[reason], reason))
        dropped = [
            {"reason": reason, "records": self.dropped[reason], "examples": self.examples[reason]} for reason in reasons
        ]
        return {"kept": self.kept, "dropped": dropped}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Returns the counts from what `to_dict` returned.

        Raises:
            KeyError: a value is missing.
        """
        reasons = values["dropped"]
        return cls(
            kept=values["kept"],
            dropped=Counter({entry["reason"]: entry["records"] for entry in reasons}),
            examples={entry["reason"]: list(entry["examples"]) for entry in reasons},
        )
