"""The result of one trial of a suite: an arm, trained and evaluated with one seed.

evaluation.json, metrics.jsonl of a run, its recipe and cost -> TrialResult -> RESULTS/ARM-seedN.json, some kilobytes
RESULTS/*.json -> TrialResult, every value checked -> `statistics.py`

Results are meant to be committed: a trial whose file exists is not run again, and all tables and figures are made from
these files alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt

from ufork.errors import UforkError
from ufork.eval.record import Evaluation, Record, ScoreTable
from ufork.files import make_folder, write_whole
from ufork.vocabulary import Task

VERSION: Final = 1
"""Version of the layout of a result file."""
MAX_FILE_BYTES = 4 * 2**20
"""Largest result file that is read."""
NORMALISED = "0 chance, 1 perfect"
"""Measure of scores that are normalised (docs/evaluation.md)."""


class ResultError(UforkError):
    """A result file is damaged, or was written by another version."""


class Score(Record):
    """Mean over the groups of one table of an evaluation."""

    name: str
    """BENCHMARK/TABLE, such as scenes/answers."""
    task: Task
    measure: str
    """Name of what it counts, such as "nats per image code"."""
    higher_is_better: bool
    value: FiniteFloat
    """Normalised where chance is known."""
    groups: dict[str, FiniteFloat]
    """The same by group."""

    @classmethod
    def of_table(cls, benchmark: str, table: ScoreTable) -> Self:
        """Returns the score of a table of the benchmark called `benchmark`."""
        normalised = table.mean.normalised
        field = "score" if normalised is None else "normalised"
        return cls(
            name=f"{benchmark}/{table.title.lower()}",
            task=table.task,
            measure=table.measure if normalised is None else NORMALISED,
            higher_is_better=table.is_share,
            value=table.mean.score if normalised is None else normalised,
            groups={name: getattr(group, field) for name, group in table.groups.items()},
        )


class Curve(Record):
    """Training loss of one task over the steps of all phases."""

    steps: list[NonNegativeInt]
    losses: list[FiniteFloat]
    """Mean over the steps since the step before, in nats per target."""


class Cost(Record):
    """Size of an arm's model, and operations of its training."""

    total_parameters: PositiveInt
    active_parameters: dict[Task, PositiveInt]
    """Parameters that a sample of the task runs through."""
    training_flops: dict[Task, NonNegativeInt]
    """Operations of all passes of the task, counted by `ufork.model.cost` for typical packed sequences."""


class TrialResult(Record):
    """One arm, trained and evaluated with one seed."""

    version: Literal[1] = VERSION
    suite: str
    arm: str
    seed: NonNegativeInt
    values: dict[str, Any]
    """Dotted keys and values by which the recipe differs from the suite's base recipe."""
    recipe: dict[str, Any]
    """The resolved recipe."""
    cost: Cost
    steps: NonNegativeInt
    """Optimizer steps of all phases."""
    scores: list[Score]
    curves: dict[Task, Curve]
    probes: dict[str, list[dict[str, FiniteFloat]]] = {}
    """Measurements during training by probe (`ufork/train/probes`): figures by name, and the step."""
    seconds: dict[str, FiniteFloat]
    """Time of training, and of the last start of the evaluation."""
    commit: str
    """Of ufork; with + if files were changed, empty if unknown."""
    machine: str
    versions: dict[str, str]

    @property
    def values_by_score(self) -> dict[str, float]:
        """Values of the scores by their names."""
        return {score.name: score.value for score in self.scores}

    def save(self, folder: Path) -> Path:
        """Writes the file whole or not at all, a line per field; returns its path.

        Raises:
            StorageError: it cannot be written.
        """
        path = result_file(folder, self.arm, self.seed)
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in self.model_dump(mode="json").items()]
        make_folder(folder, choose="another --results")
        write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n", durable=True, choose="another --results")
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            ResultError: the file cannot be read, or a value is missing or of the wrong type.
        """
        remedy = "restore it, or remove it to run the trial again"
        return cls.read_file(path, error=ResultError, remedy=remedy, max_bytes=MAX_FILE_BYTES)


def trial_name(arm: str, seed: int) -> str:
    """Returns the name of a trial's run folder and result file."""
    return f"{arm}-seed{seed}"


def result_file(folder: Path, arm: str, seed: int) -> Path:
    """Returns the path of a trial's result in the folder of results."""
    return folder / f"{trial_name(arm, seed)}.json"


def load_results(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> list[TrialResult]:
    """Reads the results that exist, arm by arm and seed by seed; raises ResultError as `TrialResult.load`."""
    paths = [result_file(folder, arm, seed) for arm in arms for seed in seeds]
    return [TrialResult.load(path) for path in paths if path.exists()]


def scores_of(evaluation: Evaluation) -> list[Score]:
    """Returns a score for each table of an evaluation."""
    return [Score.of_table(benchmark.name, table) for benchmark in evaluation.benchmarks for table in benchmark.tables]
