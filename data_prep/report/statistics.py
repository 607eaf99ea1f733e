"""What the samples of a collection are like, counted while they are made.

    a sample, its image's facts, its language  ->  a name or a fixed bin in each of TABLES  ->  Statistics
    Statistics of each job, added up  ->  Statistics of all

Their size depends on the number of tables, bins and names, never on the number of samples.
"""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Self

from ufork.data.shards.sample import Sample
from ufork.vision.image_header import ImageHeader

MAX_NAMES = 100
"""Names that a table holds, lest licences that are different for each image fill it; what comes later is OTHERS."""

OTHERS = "others"
_MAX_NAME_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class Table:
    """A property that samples are counted by."""

    title: str
    edges: tuple[float, ...] = ()
    """Where its bins begin, each up to the next one; none where it goes by names."""

    @cached_property
    def bins(self) -> tuple[str, ...]:
        """The names of its bins in order."""
        inner = (f"{low:g} to {high:g}" for low, high in pairwise(self.edges))
        return (f"under {self.edges[0]:g}", *inner, f"{self.edges[-1]:g} and more") if self.edges else ()

    def bin_of(self, value: float) -> str:
        """The name of the bin that `value` is in."""
        return self.bins[bisect_right(self.edges, value)]


TABLES = {
    "task": Table(title="Task"),
    "format": Table(title="Image format"),
    "short_side_px": Table(title="Shorter side of the image, px", edges=(64, 128, 256, 384, 512, 768, 1024, 2048)),
    "aspect": Table(title="Long side over short side", edges=(1.1, 1.4, 1.6, 2, 3, 5)),
    "text_chars": Table(title="Text, characters", edges=(10, 20, 50, 100, 200, 500, 1000, 2000, 5000)),
    "language": Table(title="Language, where it could be told"),
    "licence": Table(title="Licence"),
}


@lru_cache(maxsize=2 * MAX_NAMES)
def printable(name: str) -> str:
    """A name from outside as it can be written anywhere: cut, without control characters and half letters."""
    name = name[:_MAX_NAME_CHARS]
    return name if name.isprintable() else "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def count(counts: Counter[str], name: str, number: int = 1) -> str:
    """Adds `number` to a name's count, or to that of OTHERS; returns the name that it was counted under."""
    name = printable(name)
    name = name if name in counts or len(counts) < MAX_NAMES else OTHERS
    counts[name] += number
    return name


@dataclass
class Statistics:
    """Counts of samples; of several jobs they are added with `+`, in an order that stays the same."""

    num_samples: int = 0
    image_bytes: int = 0
    """Of all image files together."""
    text_chars: int = 0
    """Of all prompts, questions and answers together."""
    tables: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in TABLES})
    """Key of TABLES -> name or bin -> samples."""

    def add(self, sample: Sample, image: ImageHeader | None, *, language: str | None = None) -> None:
        """Counts one sample.

        Args:
            sample: as it is written.
            image: facts of its image; None where there is none.
            language: as the filters' verdict tells it.
        """
        text_chars = len(sample.prompt) + sum(len(part) for turn in sample.turns for part in turn)
        self.num_samples += 1
        self.text_chars += text_chars
        count(self.tables["task"], sample.task.value)
        count(self.tables["text_chars"], TABLES["text_chars"].bin_of(text_chars))
        count(self.tables["licence"], sample.licence or "not told")
        if language is not None:
            count(self.tables["language"], language)
        if image is not None:
            self.image_bytes += image.num_bytes
            count(self.tables["format"], image.format)
            count(self.tables["short_side_px"], TABLES["short_side_px"].bin_of(image.short_px))
            count(self.tables["aspect"], TABLES["aspect"].bin_of(image.aspect))

    def __add__(self, other: "Statistics") -> "Statistics":
        tables = {name: Counter(counts) for name, counts in self.tables.items()}
        for table, counts in other.tables.items():
            for name, number in counts.items():
                count(tables[table], name, number)
        return Statistics(
            num_samples=self.num_samples + other.num_samples,
            image_bytes=self.image_bytes + other.image_bytes,
            text_chars=self.text_chars + other.text_chars,
            tables=tables,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, tables in the order of TABLES and bins in theirs."""
        return {
            "num_samples": self.num_samples,
            "image_bytes": self.image_bytes,
            "text_chars": self.text_chars,
            "tables": {name: dict(self.rows(name)) for name in TABLES},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Of what `to_dict` gave.

        Raises:
            KeyError: something is missing.
        """
        return cls(
            num_samples=values["num_samples"],
            image_bytes=values["image_bytes"],
            text_chars=values["text_chars"],
            tables={name: Counter(values["tables"][name]) for name in TABLES},
        )

    def rows(self, table: str) -> list[tuple[str, int]]:
        """A table's names and counts: bins in order from the first to the last that has any, names by their counts."""
        counts, bins = self.tables[table], TABLES[table].bins
        if not bins:
            return sorted(counts.items(), key=lambda row: (-row[1], row[0]))
        used = [number for number, name in enumerate(bins) if counts[name]]
        return [(name, counts[name]) for name in (bins[used[0] : used[-1] + 1] if used else ())]
