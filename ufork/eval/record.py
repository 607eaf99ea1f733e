"""The record that an evaluation leaves: per benchmark the scores by group, further figures and examples.

CaseScore of each case -> Benchmark.report -> ScoreTable, Figure -> Evaluation -> evaluation.json
evaluation.json -> Evaluation.load (every value checked against these classes) -> the report, or a terminal's table
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    computed_field,
)

from ufork.errors import UforkError
from ufork.files import make_folder, read_bounded, write_whole
from ufork.vocabulary import Task

VERSION: Final = 2
"""Version of the layout of evaluation.json."""

MAX_FILE_BYTES = 64 * 2**20
"""Largest file of a record that is read, unless its kind has another limit."""

BenchmarkName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
PictureName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}/[0-9a-f]{16}-(question|drawing|reference)\.png$")]
"""Path of an example's picture below the folder of the evaluation."""


class EvaluationError(UforkError):
    """The record of an evaluation is damaged or was written by another version."""


class Record(BaseModel):
    """Base of everything that is stored: immutable, every value checked."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def read_file(cls, path: Path, *, error: type[UforkError], remedy: str, max_bytes: int = MAX_FILE_BYTES) -> Self:
        """Reads a JSON file of this kind of record.

        Args:
            path: the file.
            error: raised, with the first fault, if it cannot be read or a value is missing or of the wrong type.
            remedy: what to do then.
            max_bytes: largest file that is read.

        Raises:
            FileNotFoundError: there is none.
        """
        try:
            return cls.model_validate_json(read_bounded(path, max_bytes))
        except FileNotFoundError:
            raise
        except OSError as fault:
            raise error(f"{path}: cannot be read ({fault.strerror}); {remedy}") from None
        except ValidationError as fault:
            first = fault.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise error(f"{path}: {where}: {first['msg']}; {remedy}") from None

    def write_file(self, path: Path) -> None:
        """Writes the JSON whole or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        make_folder(path.parent)
        write_whole(path, self.model_dump_json(indent=1) + "\n")


class CaseScore(Record):
    """Score of one case, as its benchmark's `score` returns it."""

    right: bool | None = None
    """Whether the output is right; None where nothing decides that."""
    note: str = ""
    """Outcome of the scoring, for readers of an example."""
    expected: str = ""
    """The true answer, for the reader of an example."""
    group: str
    task: Task
    details: dict[str, Any] = {}
    """JSON values that the benchmark's `report` needs."""


class Example(Record):
    """A case shown in the report: a question with its answer, or a prompt with its drawing."""

    task: Task
    group: str
    text: str
    """The question or the prompt."""
    picture: PictureName
    """The image asked about, or the drawing."""
    reference: PictureName | None = None
    """A real image of the prompt."""
    answer: str = ""
    expected: str = ""
    note: str = ""
    right: bool | None = None


class GroupScore(Record):
    """Score of one group, with those of chance and of a perfect model."""

    score: FiniteFloat
    num_cases: PositiveInt
    chance: FiniteFloat | None = None
    """Score of a model that does not look at the question's image, or does not read the prompt."""
    ceiling: FiniteFloat | None = None
    """Score of a perfect model, where mistakes of the detector keep it from 1."""
    standard_error: FiniteFloat | None = None
    confusion: dict[str, dict[str, NonNegativeInt]] = {}
    """confusion[truth][answer] = number of cases; empty for scores of another kind."""
    further: dict[str, FiniteFloat] = {}
    """Other figures of the group, by name."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def normalised(self) -> float | None:
        """0 at chance, 1 at the ceiling (or at 1); 0 where the two are equal, and None without chance."""
        return None if self.chance is None else _normalised(self.score, self.chance, self.ceiling)


class MeanScore(Record):
    """Means over the groups of a table; None where a group has no such value."""

    score: float
    chance: float | None
    ceiling: float | None
    normalised: float | None


class ScoreTable(Record):
    """Scores of one kind, by group."""

    task: Task
    title: str
    measure: str
    """Name of what the score counts, such as "right" or "nats per code"."""
    is_share: bool = True
    """Whether scores lie in [0, 1] and higher is better."""
    groups: dict[str, GroupScore] = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean(self) -> MeanScore:
        """Means over the groups, each with the same weight."""
        return MeanScore(
            **{
                name: _mean([getattr(group, name) for group in self.groups.values()])
                for name in ("score", "chance", "ceiling", "normalised")
            }
        )


class Figure(Record):
    """A figure of a benchmark that is not a score by group."""

    label: str
    value: str
    """Formatted, with its unit."""
    note: str = ""


class BenchmarkRecord(Record):
    """Results of one benchmark."""

    name: BenchmarkName
    title: str
    description: str
    tables: list[ScoreTable]
    figures: list[Figure]
    examples: list[Example] = Field(max_length=10_000)
    """The first cases of each group, not selected."""
    num_cases: NonNegativeInt
    """Cases that were scored."""
    num_skipped: NonNegativeInt
    """Cases whose data is unusable."""
    skipped: list[str]
    """Why, for the first of them."""


class Evaluation(Record):
    """Results of all benchmarks that a model was evaluated on."""

    version: Literal[2] = VERSION
    checkpoint: str
    """Folder of the evaluated weights."""
    benchmarks: list[BenchmarkRecord]
    seconds: FiniteFloat
    """Duration, without the cases that an earlier evaluation had scored."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            EvaluationError: the file cannot be read, or a value is missing or of the wrong type.
        """
        return cls.read_file(path, error=EvaluationError, remedy="run `ufork evaluate` again")

    def save(self, path: Path) -> None:
        """Writes the JSON, with the derived means and normalised scores, whole or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        self.write_file(path)

    def summary(self) -> str:
        """Returns a table per kind of score for a terminal."""
        return "\n\n".join("\n".join(_lines(benchmark)) for benchmark in self.benchmarks)


def _lines(benchmark: BenchmarkRecord) -> Iterator[str]:
    for table in benchmark.tables:
        yield f"{benchmark.title}, {table.title.lower()} ({table.measure})"
        yield f"  {'':<22} {'score':>7} {'chance':>7} {'ceiling':>7} {'normalised':>10} {'cases':>6}"
        for name, group in table.groups.items():
            yield f"  {name.replace('_', ' '):<22} {_numbers(group)} {group.num_cases:>6}"
        if len(table.groups) > 1:
            yield f"  {'mean over groups':<22} {_numbers(table.mean)}"
        if (normalised := table.mean.normalised) is not None:
            top = "perfect" if table.mean.ceiling is None else "the ceiling"
            yield f"  {normalised:.2f} of the way from chance to {top}"
    for figure in benchmark.figures:
        yield f"{figure.label}: {figure.value}{f' ({figure.note})' if figure.note else ''}"
    if benchmark.num_skipped:
        yield f"skipped: {benchmark.num_skipped} cases, such as {benchmark.skipped[0]}"


def _numbers(score: GroupScore | MeanScore) -> str:
    values = [score.score, score.chance, score.ceiling, score.normalised]
    texts = ["-" if value is None else f"{value:.2f}" for value in values]
    return f"{texts[0]:>7} {texts[1]:>7} {texts[2]:>7} {texts[3]:>10}"


def _normalised(score: float, chance: float, ceiling: float | None) -> float:
    room = (1.0 if ceiling is None else ceiling) - chance
    return (score - chance) / room if room > 0 else 0.0


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
