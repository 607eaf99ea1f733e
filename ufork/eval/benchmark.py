"""The interface between benchmarks and the evaluator.

    Benchmark.cases -> Case: an id, a group and a request
    evaluator: batches of requests of one kind -> model -> Output
    Benchmark.score -> CaseScore per case      Benchmark.report -> BenchmarkReport: tables, figures

A benchmark knows its data and how to score; it never sees the model, batches, seeds or files of results. The evaluator
(`evaluate.py`) knows no benchmark. Case ids make evaluations resumable: a case that was scored is not asked again.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ufork.data.shards.sample import Sample
from ufork.eval.record import CaseScore, Figure, ScoreTable
from ufork.infer.model import TargetLoss
from ufork.vocabulary import Task


@dataclass(frozen=True, kw_only=True)
class Question:
    """Asks a question about an image; the output is the answer, a str."""

    image: bytes
    """Undecoded PNG, JPEG or WebP file."""
    text: str

    @property
    def task(self) -> Task:
        """Branch of the model that serves the request."""
        return Task.UNDERSTANDING


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Asks for a drawing; the output is an image, uint8 [S, S, 3]."""

    text: str

    @property
    def task(self) -> Task:
        """Branch of the model that serves the request."""
        return Task.GENERATION


@dataclass(frozen=True, kw_only=True)
class LossOf:
    """Asks for the cross-entropy of a sample; the output is a `TargetLoss`."""

    sample: Sample

    @property
    def task(self) -> Task:
        """Branch of the model that serves the request."""
        return self.sample.task


Request = Question | Prompt | LossOf
Output = str | NDArray[np.uint8] | TargetLoss


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request to the model, with what its benchmark needs to score the output."""

    id: str
    """Unique within the benchmark and the same in every run. To draw a prompt several times, give each its own id."""
    group: str
    """Skill, category or source whose cases are scored together."""
    request: Request
    truth: Any = None
    """Read by the benchmark's `score` only."""
    reference: bytes | None = None
    """Real image of a prompt (an undecoded file), shown beside the drawing in the report."""

    @property
    def task(self) -> Task:
        """Branch of the model that serves the case."""
        return self.request.task


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Results of a benchmark over all its cases."""

    tables: list[ScoreTable]
    figures: list[Figure]


class Benchmark(Protocol):
    """A stream of cases, how to score them, and what to report.

    To add one, write a class with these members, test it with a model whose scores are known (tests/eval/toy.py), and
    construct it in pipelines/verbs/evaluate.py from its section of `EvaluateConfig`.
    """

    @property
    def name(self) -> str:
        """Name of the benchmark's folder: lower-case letters, digits, `-` and `_`."""

    @property
    def title(self) -> str:
        """Heading in the report."""

    @property
    def description(self) -> str:
        """One paragraph for readers of the report: what is asked, and what chance and ceiling are."""

    @property
    def fingerprint(self) -> str:
        """Text that changes whenever stored scores become outdated other than by the model: data, detector, rules."""

    def cases(self, tasks: Collection[Task]) -> Iterator[Case]:
        """Streams the cases of `tasks`, in the same order every time.

        Raises:
            UforkError: the benchmark's data is missing or damaged.
        """

    def score(self, cases: Sequence[Case], outputs: Sequence[Output]) -> list[CaseScore]:
        """Scores a batch of cases of one kind of request; a score must not depend on the rest of its batch."""

    def report(self, scores: Sequence[CaseScore]) -> BenchmarkReport:
        """Summarises the scores of all cases, in the order of the cases; there is at least one."""


def case_seed(seed: int, case_id: str) -> int:
    """Returns the seed (63 bits) of a case's drawing, from the evaluation's seed and the case's id alone."""
    digest = hashlib.blake2b(f"{seed}/{case_id}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
