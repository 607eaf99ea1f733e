"""Statistics of the samples of a collection, counted while they are made.

    a sample, its image's header, its language  ->  a name or a fixed bin in each of TABLES  ->  Statistics of a job
    sum over the jobs  ->  Statistics of the collection

Their size does not depend on the number of samples.
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
"""Limit of names per table, for licences that differ for every image; further names are counted as OTHERS."""

OTHERS = "others"
_MAX_NAME_CHARS = 300


@dataclass(frozen=True, kw_only=True)
class Table:
    """A property by which samples are counted."""

    title: str
    edges: tuple[float, ...] = ()
    """Lower edges of all bins but the first; empty for a table of names."""

    @cached_property
    def bins(self) -> tuple[str, ...]:
        """Names of the bins in order; empty for a table of names."""
        inner = (f"{low:g} to {high:g}" for low, high in pairwise(self.edges))
        return (f"under {self.edges[0]:g}", *inner, f"{self.edges[-1]:g} and more") if self.edges else ()

    def bin_of(self, value: float) -> str:
        """Returns the name of the bin that contains `value`."""
        return self.bins[bisect_right(self.edges, value)]


TABLES = {
    "task": Table(title="Task"),
    "format": Table(title="Image format"),
    "short_side_px": Table(title="Shorter side of the image, px", edges=(64, 128, 256, 384, 512, 768, 1024, 2048)),
    "aspect": Table(title="Long side over short side", edges=(1.1, 1.4, 1.6, 2, 3, 5)),
    "text_chars": Table(title="Text, characters", edges=(10, 20, 50, 100, 200, 500, 1000, 2000, 5000)),
    "language": Table(title="Language, where identified"),
    "licence": Table(title="Licence"),
}


@lru_cache(maxsize=2 * MAX_NAMES)
def printable(name: str) -> str:
    """Returns a name from the data truncated, with unprintable characters and lone surrogates replaced."""
    name = name[:_MAX_NAME_CHARS]
    return name if name.isprintable() else "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def count(counts: Counter[str], name: str, number: int = 1) -> str:
    """Adds `number` to the count of a name, or of OTHERS if the table is full; returns the name that was counted."""
    name = printable(name)
    name = name if name in counts or len(counts) < MAX_NAMES else OTHERS
    counts[name] += number
    return name


@dataclass
class Statistics:
    """Counts of samples. Those of several jobs are added with `+`, in the order of the jobs."""

    num_samples: int = 0
    image_bytes: int = 0
    """Total size of the image files."""
    text_chars: int = 0
    """Total characters of all prompts, questions and answers."""
    tables: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in TABLES})
    """Key of TABLES -> name or bin -> number of samples."""

    def add(self, sample: Sample, image: ImageHeader | None, *, language: str | None = None) -> None:
        """Counts one sample.

        Args:
            sample: the sample as written.
            image: header of its image; None for a sample without an image file.
            language: ISO 639 code as found by the filters, if any.
        """
        text_chars = len(sample.prompt) + sum(len(text) for turn in sample.turns for text in turn)
        self.num_samples += 1
        self.text_chars += text_chars
        count(self.tables["task"], sample.task.value)
        count(self.tables["text_chars"], TABLES["text_chars"].bin_of(text_chars))
        count(self.tables["licence"], sample.licence or "not given")
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
        """Returns values for JSON, tables and bins in order."""
        return {
            "num_samples": self.num_samples,
            "image_bytes": self.image_bytes,
            "text_chars": self.text_chars,
            "tables": {name: dict(self.rows(name)) for name in TABLES},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Returns the statistics from what `to_dict` returned.

        Raises:
            KeyError: a value is missing.
        """
        return cls(
            num_samples=values["num_samples"],
            image_bytes=values["image_bytes"],
            text_chars=values["text_chars"],
            tables={name: Counter(values["tables"][name]) for name in TABLES},
        )

    def rows(self, table: str) -> list[tuple[str, int]]:
        """Returns (name, count) of a table: bins from the first to the last used one, or names by count."""
        counts, bins = self.tables[table], TABLES[table].bins
        if not bins:
            return sorted(counts.items(), key=lambda row: (-row[1], row[0]))
        used = [number for number, name in enumerate(bins) if counts[name]]
        return [(name, counts[name]) for name in (bins[used[0] : used[-1] + 1] if used else ())]
