"""Runs benchmarks with a model.

    Benchmark.cases -> Case -> batches of one kind of request -> model.answer, model.draw or model.loss -> outputs
    outputs -> Benchmark.score -> CaseLog (resumes), examples as PNG files -> Benchmark.report -> Evaluation

Cases that were scored before with the same weights, data and sampling are read from the log. A case whose data is
unusable is skipped and counted.
"""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ufork.errors import ConfigError, SampleError
from ufork.eval.benchmark import Benchmark, Case, LossOf, Output, Prompt, Question, case_seed
from ufork.eval.case_log import CaseLog, ScoredCase
from ufork.eval.config import EvaluateConfig
from ufork.eval.model import EvaluatedModel
from ufork.eval.pictures import write_example
from ufork.eval.record import BenchmarkRecord, CaseScore, Evaluation, Example
from ufork.infer.model import TargetLoss
from ufork.vision.images import decode_image
from ufork.vocabulary import Task

REPORT_EVERY_SECONDS = 15.0
"""Interval of the progress log."""

SHOWN_SKIPS = 5
"""Reasons for skipped cases that the record names."""

logger = logging.getLogger(__name__)


def evaluate(
    model: EvaluatedModel,
    benchmarks: Sequence[Benchmark],
    config: EvaluateConfig,
    *,
    folder: Path,
    checkpoint: str,
    weights_id: str,
) -> Evaluation:
    """Runs each benchmark with `model`.

    Args:
        model: answers and draws; benchmarks are restricted to its tasks.
        benchmarks: with unique names.
        config: sampling, batch sizes, and the number of examples.
        folder: receives FOLDER/BENCHMARK/cases.jsonl and the pictures of the examples.
        checkpoint: where the weights come from, for the record.
        weights_id: text that differs between different weights, such as a checksum.

    Raises:
        ConfigError: no benchmark has a case for the model's tasks.
        UforkError: a benchmark's data is missing or damaged.
        StorageError: the folder cannot be written.
    """
    start = time.monotonic()
    records = []
    for benchmark in benchmarks:
        run = _Run(model, benchmark, config, folder, weights_id)
        record = run.record()
        if record:
            records.append(record)
        logger.info("%s: %d cases after %.0f s", benchmark.name, len(run.order), time.monotonic() - start)
    if not records:
        names = ", ".join(benchmark.name for benchmark in benchmarks) or "none"
        raise ConfigError(
            f"evaluate: no usable case for the model's tasks ({', '.join(model.tasks)}) in the benchmarks ({names});"
            " prepare held-out samples, or name folders in evaluate.heldout.folders"
        )
    return Evaluation(checkpoint=checkpoint, benchmarks=records, seconds=time.monotonic() - start)


class _Run:
    """One benchmark with one model."""

    def __init__(
        self, model: EvaluatedModel, benchmark: Benchmark, config: EvaluateConfig, folder: Path, weights_id: str
    ) -> None:
        self.model, self.benchmark, self.config, self.folder = model, benchmark, config, folder
        self.log = CaseLog(folder / benchmark.name, _fingerprint(benchmark, config, weights_id))
        self.order: list[str] = []
        self.shown: dict[str, bool] = {}
        """Whether each case is an example, by case id."""
        self.skipped: dict[str, str] = {}
        self.reported = time.monotonic()

    def record(self) -> BenchmarkRecord | None:
        """Scores the cases that are missing in the log; returns None without any usable case."""
        for batch in self._batches():
            self._score(batch)
            if time.monotonic() - self.reported > REPORT_EVERY_SECONDS:
                self.reported = time.monotonic()
                logger.info("%s: %d cases scored", self.benchmark.name, len(self.log.scored))
        scored = [self.log.scored[case_id] for case_id in self.order if case_id not in self.skipped]
        if not scored:
            return None
        report = self.benchmark.report([case.score for case in scored])
        return BenchmarkRecord(
            name=self.benchmark.name,
            title=self.benchmark.title,
            description=self.benchmark.description,
            tables=report.tables,
            figures=report.figures,
            examples=[case.example for case in scored if case.example and self.shown[case.id]],
            num_cases=len(scored),
            num_skipped=len(self.skipped),
            skipped=list(self.skipped.values())[:SHOWN_SKIPS],
        )

    def _batches(self) -> Iterator[list[Case]]:
        """Yields the cases that are to be scored, each batch of one kind of request."""
        sizes = {Question: self.config.answer.batch_questions, Prompt: self.config.draw.batch_prompts, LossOf: 1}
        waiting: dict[type, list[Case]] = {kind: [] for kind in sizes}
        examples: Counter[tuple[str, Task]] = Counter()
        for case in self.benchmark.cases(self.model.tasks):
            assert case.task in self.model.tasks and case.id not in self.shown, case.id
            self.order.append(case.id)
            self.shown[case.id] = examples[case.group, case.task] < self.config.examples_per_group
            examples[case.group, case.task] += 1
            if self._is_scored(case):
                continue
            batch = waiting[type(case.request)]
            batch.append(case)
            if len(batch) == sizes[type(case.request)]:
                yield batch.copy()
                batch.clear()
        yield from (batch for batch in waiting.values() if batch)

    def _is_scored(self, case: Case) -> bool:
        known = self.log.scored.get(case.id)
        if known is None:
            return False
        if not self.shown[case.id] or isinstance(case.request, LossOf):
            return True
        pictures = [known.example.picture, known.example.reference] if known.example else []
        return bool(pictures) and all((self.folder / name).is_file() for name in pictures if name)

    def _score(self, batch: list[Case]) -> None:
        usable, outputs = self._outputs(batch)
        if not usable:
            return
        scores = self.benchmark.score(usable, outputs)
        self.log.append(
            [
                ScoredCase(id=case.id, score=score, example=self._example(case, output, score))
                for case, output, score in zip(usable, outputs, scores, strict=True)
            ]
        )

    def _outputs(self, batch: list[Case]) -> tuple[list[Case], list[Output]]:
        """Returns the usable cases of a batch with the model's outputs; counts the others as skipped."""
        inputs: list[tuple[Case, Output | None]] = []
        for case in batch:
            try:
                inputs.append((case, self._input(case)))
            except SampleError as error:
                self.skipped[case.id] = f"{case.id}: {error}"
                logger.warning("%s: case skipped: %s", self.benchmark.name, self.skipped[case.id])
        usable, values = [case for case, _ in inputs], [value for _, value in inputs]
        texts = [case.request.text for case in usable if not isinstance(case.request, LossOf)]
        if not texts:
            return usable, [value for value in values if value is not None]
        if isinstance(usable[0].request, Question):
            return usable, list(self.model.answer(np.stack(values), texts, self.config.answer))  # type: ignore[arg-type]
        seeds = [case_seed(self.config.draw.seed, case.id) for case in usable]
        return usable, list(self.model.draw(texts, self.config.draw, seeds=seeds))

    def _input(self, case: Case) -> np.ndarray | TargetLoss | None:
        """Returns what a case's data gives by itself: the decoded image of a question, or the loss of a sample."""
        request = case.request
        if isinstance(request, Question):
            return decode_image(request.image, size_px=self.model.image_px, purpose=Task.UNDERSTANDING)
        if isinstance(request, LossOf):
            loss = self.model.loss(request.sample)
            if not math.isfinite(loss.nats):
                raise SampleError(f"the loss is {loss.nats}")
            return loss
        return None

    def _example(self, case: Case, output: Output, score: CaseScore) -> Example | None:
        if not self.shown[case.id] or isinstance(case.request, LossOf):
            return None
        return write_example(
            case, output, score, benchmark=self.benchmark.name, folder=self.folder, size_px=self.model.image_px
        )


def _fingerprint(benchmark: Benchmark, config: EvaluateConfig, weights_id: str) -> str:
    draw = config.draw.model_dump(mode="json", exclude={"batch_prompts"})
    answer = config.answer.model_dump(mode="json", exclude={"batch_questions"})
    return json.dumps({"weights": weights_id, "benchmark": benchmark.fingerprint, "draw": draw, "answer": answer})
