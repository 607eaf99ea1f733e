"""The demo's emoji as a benchmark: questions about, and drawings of, concepts that training never showed.

held-out emoji -> first questions and prompts -> Case -> accuracy by kind of question; drawings are only shown
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ufork.data.shards.manifest import Manifest
from ufork.data.shards.source import ShardSource
from ufork.eval.benchmark import BenchmarkReport, Case, Output, Prompt, Question
from ufork.eval.pictures import image_bytes
from ufork.eval.record import CaseScore
from ufork.eval.scenes.config import EmojiBenchmarkConfig
from ufork.eval.scenes.questions import answer_scores, answer_table, question_case
from ufork.vocabulary import Task

DRAWINGS_GROUP = "emoji"
"""Group of the drawings."""


class EmojiBenchmark:
    """Held-out emoji; answers are scored, drawings are not."""

    name = "emoji"
    title = "Emoji"
    description = (
        "Emoji of concepts that training never showed. Chance is the best constant answer to each kind of question;"
        " drawings are shown but not scored."
    )

    def __init__(self, folder: Path, config: EmojiBenchmarkConfig) -> None:
        """Reads the manifest of the held-out source in `folder`.

        Raises:
            ShardError: the source is missing or damaged.
        """
        self.folder, self.config = folder, config
        self.manifest = Manifest.load(folder)

    @property
    def fingerprint(self) -> str:
        """Digest of the held-out source."""
        return self.manifest.recipe

    def cases(self, tasks: Collection[Task]) -> Iterator[Case]:
        """Streams the first questions, then the first prompts.

        Raises:
            ShardError: the source is damaged.
            SampleError: a sample's truth does not describe it.
        """
        if Task.UNDERSTANDING in tasks:
            source = ShardSource(self.folder, Task.UNDERSTANDING)
            for number in range(min(len(source), self.config.questions)):
                yield question_case(source[number])
        if Task.GENERATION in tasks:
            source = ShardSource(self.folder, Task.GENERATION)
            for number in range(min(len(source), self.config.drawings)):
                sample = source[number]
                yield Case(
                    id=sample.id,
                    group=DRAWINGS_GROUP,
                    request=Prompt(text=sample.prompt),
                    reference=image_bytes(sample),
                )

    def score(self, cases: Sequence[Case], outputs: Sequence[Output]) -> list[CaseScore]:
        """Compares answers with the truth; drawings get no score."""
        if isinstance(cases[0].request, Question):
            return answer_scores(cases, outputs)
        return [CaseScore(group=case.group, task=case.task) for case in cases]

    def report(self, scores: Sequence[CaseScore]) -> BenchmarkReport:
        """Returns the table of answers by kind of question."""
        return BenchmarkReport(tables=answer_table(scores), figures=[])
