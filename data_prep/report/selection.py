"""What became of the records of a collection: how many were kept, how many dropped for which reason, and examples.

each record is kept or dropped  ->  Selection of a job  ->  added up in the jobs' order  ->  Selection of all
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from data_prep.report.statistics import count, printable

MAX_EXAMPLES = 5
"""Records that are named for each reason: the first ones."""


@dataclass
class Selection:
    """Counts of records; of several jobs they are added with `+`, in the jobs' order."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> records."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names of the first records, at most MAX_EXAMPLES."""

    @property
    def num_records(self) -> int:
        """Kept and dropped."""
        return self.kept + self.dropped.total()

    def drop(self, record_id: str, reason: str) -> None:
        """Counts a record that is left out."""
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
        """JSON-able values, the most frequent reason first."""
        reasons = sorted(self.dropped, key=lambda reason: (-self.dropped[reason], reason))
        dropped = [
            {"reason": reason, "records": self.dropped[reason], "examples": self.examples[reason]} for reason in reasons
        ]
        return {"kept": self.kept, "dropped": dropped}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Of what `to_dict` gave.

        Raises:
            KeyError: something is missing.
        """
        rows = values["dropped"]
        return cls(
            kept=values["kept"],
            dropped=Counter({row["reason"]: row["records"] for row in rows}),
            examples={row["reason"]: list(row["examples"]) for row in rows},
        )
