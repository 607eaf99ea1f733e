"""What came out of a demo: scores beside what was expected, why a score is low, and what to try next."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.demo.config import ExpectedScores
from pipelines.recipe import Recipe
from ufork.eval.record import Evaluation
from ufork.report.metrics import read_metrics
from ufork.vocabulary import Task

SCORES = {Task.UNDERSTANDING: "answers", Task.GENERATION: "drawings"}
"""Names of the scores, as in `ExpectedScores`."""
BUSY_SHARE = 0.7
"""Share of its cores that training keeps busy at least, with nothing else running."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished demo."""

    scores: dict[str, float]
    """Normalised, by the names in `SCORES`."""
    seconds: dict[str, float]
    """Of each verb, over all starts."""
    training_cores: float | None
    """Cores that training kept busy on average; None where nothing was trained now, or on GPUs."""

    @property
    def minutes(self) -> float:
        """Minutes of all verbs."""
        return sum(self.seconds.values()) / 60


def scores_of(path: Path) -> dict[str, float]:
    """Returns the normalised scores of an evaluation; of several benchmarks with one task, those of the first.

    Raises:
        EvaluationError: the file is damaged.
    """
    scores: dict[str, float] = {}
    for benchmark in Evaluation.load(path).benchmarks:
        for table in benchmark.tables:
            if table.mean.normalised is not None:
                scores.setdefault(SCORES[table.task], table.mean.normalised)
    return scores


def low_scores(scores: dict[str, float], expect: ExpectedScores) -> list[str]:
    """Returns the names of the scores that are lower than expected."""
    expected = expect.model_dump()
    return [name for name, score in scores.items() if expected[name] is not None and score < expected[name]]


def reason_for_low_scores(recipe: Recipe, training_cores: float | None, cores: int) -> str:
    """Returns the likely reason in one sentence."""
    if training_cores is not None and training_cores < BUSY_SHARE * cores:
        return (
            f"other programs used this machine: training had {training_cores:.1f} of {cores} cores. Run it again with"
            " nothing else running"
        )
    short = []
    for name, phase in recipe.phases.items():
        entries = read_metrics(recipe.run_folder.phase(name).metrics).entries
        steps = entries[-1]["step"] if entries else 0
        if steps < phase.train.steps:
            short.append(f"{name} {steps} of {phase.train.steps} steps")
    if short:
        return f"the time limits ended training early ({', '.join(short)}). A faster machine learns more in the time"
    return "this machine did all its training, so the recipe or another seed is the reason; the report shows the losses"


def next_commands(recipe: Recipe, program: str) -> list[str]:
    """Returns commands that draw, answer, and serve a page for both; `program` is how `ufork` is called here."""
    weights = recipe.run_folder.phase(list(recipe.phases)[-1]).weights
    prompt = next(iter(recipe.train.drawing_prompts), "a dog")
    return [
        f'{program} draw --checkpoint {weights} --prompt "{prompt}" --out picture.png',
        f'{program} answer --checkpoint {weights} --image picture.png --question "is there a dog?"',
        f"{program} serve --checkpoint {weights}",
    ]


def picture_folders(recipe: Recipe) -> list[Path]:
    """Returns where the drawings are: of training, and of the evaluation."""
    folder = recipe.run_folder
    drawn = [folder.phase(name).drawings for name in recipe.phases if folder.phase(name).drawings.is_dir()]
    return [*drawn, folder.examples]
