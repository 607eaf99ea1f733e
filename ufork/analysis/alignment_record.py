"""What `ufork align` leaves: per model and task the agreement of image and text features at every layer.

measured curves -> AlignmentRecord -> alignment.json -> AlignmentRecord.load -> figures, the report
"""

from pathlib import Path
from typing import Final, Literal, Self

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt

from ufork.errors import UforkError
from ufork.eval.record import Record
from ufork.vocabulary import Task

VERSION: Final = 1
"""Version of the layout of alignment.json."""
Measure = Literal["mutual_neighbours", "cka", "probe"]
TITLES: dict[Measure, str] = {
    "mutual_neighbours": "mutual nearest neighbours",
    "cka": "debiased CKA",
    "probe": "linear probe, R²",
}
RECORD = "alignment.json"
PICTURES: dict[Measure, str] = {
    "mutual_neighbours": "alignment.png",
    "cka": "alignment-cka.png",
    "probe": "alignment-probe.png",
}
"""Names of the record and of each measure's picture in the folder that `ufork align` writes."""


class AnalysisError(UforkError):
    """The record of an analysis is damaged or was written by another version."""


class Score(Record):
    """A score of true pairs, beside those of permuted pairs."""

    score: FiniteFloat
    null_mean: FiniteFloat
    null_std: FiniteFloat
    """Sample standard deviation over permutations."""

    @property
    def above_null(self) -> float:
        """What the pairing adds."""
        return self.score - self.null_mean


class LayerAlignment(Record):
    """The scores after one layer."""

    layer: NonNegativeInt
    """Number along the path; 0 is the input of the first."""
    stage: str
    """`input`, `trunk`, or the task whose own layer it is."""
    scores: dict[Measure, Score]


class AlignmentCurve(Record):
    """The scores along the path of a task."""

    task: Task
    layers: list[LayerAlignment]

    def best(self, measure: Measure) -> LayerAlignment:
        """Returns the layer with the highest score."""
        return max(self.layers, key=lambda layer: layer.scores[measure].score)


class ModelAlignment(Record):
    """The curves of one model."""

    name: str
    """What a figure calls it: its checkpoint's folder, unless named otherwise."""
    curves: list[AlignmentCurve]


class AlignmentRecord(Record):
    """Curves of one model or several, on the same pairs."""

    version: Literal[1] = VERSION
    data: list[str]
    """Source folders of the pairs."""
    text: str
    """`own`, for the text on the same path at the same layer, or the folder of an external text model."""
    settings: dict[str, str | int | float | list[str] | None]
    """Of `AlignmentConfig`."""
    seconds: FiniteFloat
    num_pairs: PositiveInt
    models: list[ModelAlignment]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            AnalysisError: the file cannot be read, or a value is missing or of the wrong type.
        """
        return cls.read_file(path, error=AnalysisError, remedy="run `ufork align` again")

    def save(self, path: Path) -> None:
        """Writes the JSON whole or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        self.write_file(path)

    def summary(self) -> str:
        """Returns a table for a terminal: where along each path image and text agree most."""
        width = max(len(model.name) for model in self.models)
        head = f"{'model':<{width}}  {'task':<13}  {'measure':<24}"
        lines = [f"{head} {'first':>7} {'highest':>8} {'at layer':>18} {'last':>7} {'permuted':>9}"]
        for model in self.models:
            for curve in model.curves:
                for measure, title in TITLES.items():
                    best = curve.best(measure)
                    first, last = (curve.layers[end].scores[measure].score for end in (0, -1))
                    lines.append(
                        f"{model.name:<{width}}  {curve.task:<13}  {title:<24} {first:>7.3f}"
                        f" {best.scores[measure].score:>8.3f} {f'{best.layer} {best.stage}':>18} {last:>7.3f}"
                        f" {best.scores[measure].null_mean:>9.3f}"
                    )
        return "\n".join(lines)
