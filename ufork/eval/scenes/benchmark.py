"""The demo's scenes as a benchmark: six skills of answering and drawing.

    held-out samples by skill -> the first of each: questions and prompts -> Case
    drawings and real images -> Detector -> detections, features -> CaseScore
    CaseScore of all cases -> tables by skill, the detector's agreement with the truth, Fréchet distance

Every held-out sample of a skill shows a combination that training never did. The first samples of each skill are used,
in the order of the shards. B is the number of images of a batch, S their side in pixels.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufork.data.shards.manifest import Manifest
from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.errors import SampleError, ShardError
from ufork.eval.benchmark import BenchmarkReport, Case, Output, Prompt, Question
from ufork.eval.metrics.frechet import frechet_distance
from ufork.eval.pictures import image_bytes, read_picture
from ufork.eval.record import CaseScore, Figure, ScoreTable
from ufork.eval.scenes.config import ScenesBenchmarkConfig
from ufork.eval.scenes.detector import Detector
from ufork.eval.scenes.questions import answer_scores, answer_table, question_case
from ufork.eval.scenes.skills import SKILLS, Detection, satisfies, score_drawings
from ufork.vocabulary import Task

MIN_REFERENCE_IMAGES = 64
"""Real images that a Fréchet distance needs at least."""


class ScenesBenchmark:
    """Questions about held-out scenes, and prompts whose drawings a detector scores."""

    name = "scenes"
    title = "Scenes"
    description = (
        "GenEval's six skills on held-out combinations that no training picture shows. Chance of answers is the best"
        " constant answer to each kind of question; chance of drawings is a real picture of another prompt of the"
        " skill. The ceiling is the detector's score of real pictures of the prompts themselves."
    )

    def __init__(self, folder: Path, config: ScenesBenchmarkConfig, detector: Detector | None) -> None:
        """Reads the manifest of the held-out source in `folder`; without a detector nothing is drawn.

        Raises:
            ShardError: the source is missing or damaged.
        """
        self.folder, self.config, self.detector = folder, config, detector
        self.manifest = Manifest.load(folder)

    @property
    def fingerprint(self) -> str:
        """Digests of the held-out source and of what the detector was fitted on."""
        return f"{self.manifest.recipe} {self.detector.words.fitted_on if self.detector else ''}"

    def cases(self, tasks: Collection[Task]) -> Iterator[Case]:
        """Streams the first questions, then the first prompts of each skill.

        Raises:
            ShardError: the source is damaged, or has no sample of one of the skills.
            SampleError: a sample's truth does not describe it.
        """
        if Task.UNDERSTANDING in tasks:
            for samples in self._by_skill(Task.UNDERSTANDING).values():
                yield from map(question_case, samples[: self.config.questions_per_skill])
        if Task.GENERATION in tasks and self.detector:
            for skill, samples in self._by_skill(Task.GENERATION).items():
                for sample in samples[: self.config.drawings_per_skill]:
                    yield Case(
                        id=sample.id,
                        group=skill,
                        request=Prompt(text=sample.prompt),
                        truth=sample,
                        reference=image_bytes(sample),
                    )

    def score(self, cases: Sequence[Case], outputs: Sequence[Output]) -> list[CaseScore]:
        """Compares answers with the truth; detects what drawings and the real images of their prompts show.

        Raises:
            CheckpointError: the detector was fitted on pictures of another size than the model's.
        """
        if isinstance(cases[0].request, Question):
            return answer_scores(cases, outputs)
        assert self.detector
        drawings_BSS3 = np.stack([np.asarray(output) for output in outputs])
        images_BSS3 = np.stack([read_picture(case.truth, size_px=self.detector.words.image_px) for case in cases])
        drawn, real = self._detections(drawings_BSS3), self._detections(images_BSS3)
        return [
            _drawing_score(case, drawn_values, real_values)
            for case, drawn_values, real_values in zip(cases, drawn, real, strict=True)
        ]

    def report(self, scores: Sequence[CaseScore]) -> BenchmarkReport:
        """Returns the tables of answers and drawings, and the figures of the detector."""
        tables, figures = answer_table(scores, order=SKILLS), []
        drawings = [score.details for score in scores if score.task is Task.GENERATION]
        if drawings:
            tables.append(_drawing_table([score for score in scores if score.task is Task.GENERATION]))
            figures = [_agreement(tables[-1]), *self._frechet(drawings)]
        return BenchmarkReport(tables=tables, figures=figures)

    def _by_skill(self, task: Task) -> dict[str, list[Sample]]:
        """Returns all samples of each skill, in the order of the shards."""
        source = ShardSource(self.folder, task)
        groups: dict[str, list[Sample]] = {skill: [] for skill in SKILLS}
        for number in range(len(source)):
            sample = source[number]
            groups.get(_skill(sample), []).append(sample)
        if missing := [skill for skill, group in groups.items() if not group]:
            raise ShardError(f"{self.folder}: no {task} sample of {', '.join(missing)}; prepare more held-out samples")
        return groups

    def _detections(self, images_BSS3: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Returns the detection in each image and its features, as JSON values."""
        assert self.detector
        found, features_BF = self.detector.detect(images_BSS3), self.detector.features(images_BSS3)
        return [
            {"found": one.to_dict(), "features": features_F.tolist()}
            for one, features_F in zip(found, features_BF, strict=True)
        ]

    def _frechet(self, drawings: Sequence[dict[str, Any]]) -> list[Figure]:
        """Returns the distances of drawings, and of their prompts' real images, from real images of other prompts."""
        assert self.detector
        samples = [
            sample
            for group in self._by_skill(Task.GENERATION).values()
            for sample in group[self.config.drawings_per_skill :]
        ]
        if len(samples) < MIN_REFERENCE_IMAGES or len(drawings) < 2:
            return []
        pictures = np.stack([read_picture(sample, size_px=self.detector.words.image_px) for sample in samples])
        reference_NF = self.detector.features(pictures)
        drawn, real = (
            frechet_distance(np.array([values[side]["features"] for values in drawings], np.float32), reference_NF)
            for side in ("drawn", "real")
        )
        note = f"in the detector's features, from {len(samples)} other real images; {len(drawings)} drawings"
        return [
            Figure(label="Fréchet distance of drawings", value=f"{drawn:.2f}", note=note),
            Figure(label="Fréchet distance of real images", value=f"{real:.2f}", note="of the same prompts"),
        ]


def _skill(sample: Sample) -> str:
    try:
        return str((sample.truth["questions"][0] if sample.task == Task.UNDERSTANDING else sample.truth)["skill"])
    except (KeyError, IndexError, TypeError):
        raise SampleError(f"{sample.id}: its truth names no skill; prepare the data again") from None


def _drawing_score(case: Case, drawn: dict[str, Any], real: dict[str, Any]) -> CaseScore:
    truth, found = case.truth.truth, Detection.from_dict(drawn["found"])
    requirements = truth["requirements"]
    agrees = Detection.from_dict(real["found"]).same_as(Detection.from_truth(truth))
    return CaseScore(
        group=case.group,
        task=case.task,
        right=satisfies(requirements, found),
        note=f"found: {found.describe()}",
        details={"requirements": requirements, "drawn": drawn, "real": real, "agrees": agrees},
    )


def _drawing_table(scores: Sequence[CaseScore]) -> ScoreTable:
    groups = {}
    for skill in SKILLS:
        details = [score.details for score in scores if score.group == skill]
        if details:
            drawn, real = (
                [Detection.from_dict(values[side]["found"]) for values in details] for side in ("drawn", "real")
            )
            group = score_drawings([values["requirements"] for values in details], drawn=drawn, real=real)
            agreement = sum(values["agrees"] for values in details) / len(details)
            groups[skill] = group.model_copy(update={"further": {"detector agreement": agreement}})
    return ScoreTable(task=Task.GENERATION, title="Drawings", measure="as asked", groups=groups)


def _agreement(table: ScoreTable) -> Figure:
    shares = [group.further["detector agreement"] for group in table.groups.values()]
    return Figure(
        label="Detector agreement",
        value=f"{sum(shares) / len(shares):.1%}",
        note="real held-out pictures in which it finds every object, colour, position and the background as they are",
    )
