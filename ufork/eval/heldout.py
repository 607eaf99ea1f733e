"""A benchmark for any data: the loss of held-out samples.

    source folders of the held-out split -> first samples of each task -> model.loss -> mean cross-entropy per source

The loss counts all targets of a source alike: text tokens of answers, or image codes, all depths counted.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ufork.data.shards.manifest import Manifest
from ufork.data.shards.source import ShardSource
from ufork.errors import SampleError
from ufork.eval.benchmark import BenchmarkReport, Case, LossOf, Output
from ufork.eval.config import HeldoutConfig
from ufork.eval.record import CaseScore, GroupScore, ScoreTable
from ufork.infer.model import TargetLoss
from ufork.vocabulary import Task

MEASURES = {Task.UNDERSTANDING: "nats per text token", Task.GENERATION: "nats per image code"}

logger = logging.getLogger(__name__)


class HeldoutLoss:
    """Mean cross-entropy of held-out samples, by task and source."""

    name = "heldout"
    title = "Held-out loss"
    description = (
        "Mean cross-entropy of held-out samples of each source: of the tokens of answers, and of the codes of images."
        " Lower is better; exp of it is the perplexity."
    )

    def __init__(self, folders: Sequence[Path], config: HeldoutConfig) -> None:
        """Reads the manifests of `folders`, finished source folders.

        Raises:
            ShardError: a manifest is missing or damaged.
        """
        self.folders, self.config = folders, config
        self.manifests = [Manifest.load(folder) for folder in folders]

    @property
    def fingerprint(self) -> str:
        """Digests of the sources."""
        return " ".join(f"{manifest.source}/{manifest.split}:{manifest.recipe}" for manifest in self.manifests)

    def cases(self, tasks: Collection[Task]) -> Iterator[Case]:
        """Streams the first samples of each source and task; a sample that cannot be read is skipped with a warning."""
        seen: Counter[str] = Counter()
        for folder, manifest in zip(self.folders, self.manifests, strict=True):
            name = f"{manifest.source}/{manifest.split}"
            seen[name] += 1
            if seen[name] > 1:  # folders may hold sources of one name
                name = f"{name}#{seen[name]}"
            for task in tasks:
                source = ShardSource(folder, task)
                for number in range(min(len(source), self.config.samples_per_source)):
                    (sample,) = source.read([number])
                    if isinstance(sample, SampleError):
                        logger.warning("%s: sample skipped: %s", self.name, sample)
                        continue
                    yield Case(
                        id=f"{name}/{task}/{number}",
                        group=manifest.source,
                        request=LossOf(sample=sample),
                    )

    def score(self, cases: Sequence[Case], outputs: Sequence[Output]) -> list[CaseScore]:
        """Keeps sum and number of each sample's cross-entropies."""
        return [
            CaseScore(
                group=case.group,
                task=case.task,
                details={"nats": output.nats, "num_targets": output.num_targets},
            )
            for case, output in zip(cases, outputs, strict=True)
            if isinstance(output, TargetLoss)
        ]

    def report(self, scores: Sequence[CaseScore]) -> BenchmarkReport:
        """Returns a table per task, with a row per source."""
        groups: dict[Task, dict[str, list[CaseScore]]] = {task: defaultdict(list) for task in Task}
        for score in scores:
            groups[score.task][score.group].append(score)
        tables = [
            ScoreTable(
                task=task,
                title=str(task),
                measure=MEASURES[task],
                is_share=False,
                groups={source: _mean_loss(of_source) for source, of_source in by_source.items()},
            )
            for task, by_source in groups.items()
            if by_source
        ]
        return BenchmarkReport(tables=tables, figures=[])


def _mean_loss(scores: Sequence[CaseScore]) -> GroupScore:
    nats = sum(score.details["nats"] for score in scores)
    num_targets = sum(score.details["num_targets"] for score in scores)
    return GroupScore(score=nats / max(num_targets, 1), num_cases=len(scores))
