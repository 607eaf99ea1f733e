"""The recorded results of the recipes that ship with ufork: recorded.yaml, the one place that has them.

recorded.yaml -> RecordedRecipe -> Measured: runs on one class of machine -> mean and spread of each score
                                -> the table of docs/verified.md
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Self

from pydantic import Field, NonNegativeInt, PositiveFloat

from pipelines.demo.config import Score
from ufork.config import Config
from ufork.errors import ConfigError

RECORDED_FILE = Path(__file__).with_name("recorded.yaml")
SCORES = ("answers", "drawings")
"""Figures that runs are compared by; the time depends on the machine, and is shown beside them."""
LEAST_RUNS = 2
"""Runs from which a spread can be computed."""


class RecordedRun(Config):
    """One run."""

    seed: NonNegativeInt
    """Its `run.seed`."""
    minutes: PositiveFloat
    """Time of all verbs, without installation."""
    answers: Score | None = None
    drawings: Score | None = None


class Measured(Config):
    """Runs on one class of machine."""

    machine: str
    """Name of the class in the recipe's `demo.machines`, or of a GPU."""
    hardware: str
    """Kind and number of cores or GPUs, with the flags that decide their speed."""
    date: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")
    commit: str = Field(default="", pattern=r"^([0-9a-f]{7,40})?$")
    """Of ufork."""
    runs: tuple[RecordedRun, ...] = ()
    """None where it has not been measured yet."""
    note: str = ""

    def values(self, score: str) -> list[float]:
        """Returns the recorded values of a score, run by run."""
        return [value for run in self.runs if (value := getattr(run, score)) is not None]


class RecordedRecipe(Config):
    """One recipe."""

    recipe: str
    """Its path in the repository."""
    command: str
    """What was run."""
    measured: tuple[Measured, ...] = Field(min_length=1)

    def on(self, machine: str) -> Measured | None:
        """Returns the runs on a class of machine; None if it is not listed."""
        return next((each for each in self.measured if each.machine == machine), None)


class Recorded(Config):
    """All recorded results."""

    recipes: tuple[RecordedRecipe, ...]

    @classmethod
    def load(cls, path: Path = RECORDED_FILE) -> Self:
        """Reads the file.

        Raises:
            ConfigError: it is missing or a value is at fault.
        """
        return cls.from_yaml(path)

    def of(self, recipe: Path) -> RecordedRecipe:
        """Returns the results of the recipe in the file `recipe`, which is known by its name.

        Raises:
            ConfigError: nothing is recorded about it.
        """
        found = next((each for each in self.recipes if Path(each.recipe).name == recipe.name), None)
        if found is None:
            known = ", ".join(each.recipe for each in self.recipes)
            raise ConfigError(f"{recipe}: no results are recorded of it; there are some of {known}")
        return found


def recorded_table(recorded: Recorded) -> str:
    """Returns docs/verified.md's table in Markdown: a row for each recipe and class of machine."""
    head = ("recipe", "command", "machine", "date", "commit", "runs", "minutes", *SCORES)
    rows = [head, ("---",) * len(head), *_rows(recorded)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rows(recorded: Recorded) -> Iterator[tuple[str, ...]]:
    for recipe in recorded.recipes:
        for each in recipe.measured:
            hardware = f"{each.machine}: {each.hardware}" + (f"; {each.note}" if each.note else "")
            start = (f"`{recipe.recipe}`", f"`{recipe.command}`", hardware)
            if not each.runs:
                yield *start, "", "", "0", *("not run yet",) * (1 + len(SCORES))
                continue
            minutes = mean_and_spread([run.minutes for run in each.runs], digits=1)
            scores = [mean_and_spread(each.values(score)) for score in SCORES]
            yield *start, each.date, f"`{each.commit}`", str(len(each.runs)), minutes, *scores


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns mean ± sample standard deviation; of a single value, that value."""
    if not values:
        return "not measured"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) >= LEAST_RUNS else ""
    return f"{mean(values):.{digits}f}{spread}"
