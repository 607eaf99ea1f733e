"""Has a model draw held-out prompts and a detector judge the drawings.

    samples by skill -> the first of each: prompts -> model.draw -> drawings -> Detector -> scores, examples
                     -> the rest of each: real images, the reference of the Fréchet distance

Symbols of the shapes: B pictures, S pixels of a side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufork.data.shards.sample import Sample
from ufork.eval.config import EvaluateConfig
from ufork.eval.metrics.frechet import frechet_distance
from ufork.eval.model import EvaluatedModel
from ufork.eval.pictures import read_picture, write_picture
from ufork.eval.record import DrawingExample, FrechetScore
from ufork.eval.scenes.detector import Detector
from ufork.eval.scenes.skills import Detection, DrawingScore, satisfies, score_drawings

MIN_REFERENCE_IMAGES = 64
"""With fewer real images left over, a Fréchet distance says too little to be given."""

EMOJI = "emoji"
"""Stands for the skill in examples that no detector judges."""


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """What came of the prompts; by skill where it is a dict."""

    scores: dict[str, DrawingScore]
    detector_agreement: dict[str, float]
    frechet: FrechetScore | None
    examples: list[DrawingExample]


NO_DRAWINGS = Drawings(scores={}, detector_agreement={}, frechet=None, examples=[])


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """One skill's prompts, their drawings and real images, and what the detector found in both."""

    samples: Sequence[Sample]
    drawings_BSS3: NDArray[np.uint8]
    images_BSS3: NDArray[np.uint8]
    found_drawn: list[Detection]
    found_real: list[Detection]


def draw_scenes(
    model: EvaluatedModel,
    config: EvaluateConfig,
    samples: Mapping[str, Sequence[Sample]],
    detector: Detector,
    *,
    examples_folder: Path,
) -> Drawings:
    """Draws and judges the first `config.drawings_per_skill` prompts of each skill.

    Raises:
        SampleError: a sample has no image that can be decoded.
        CheckpointError: the detector was fitted on pictures of another size.
        StorageError: an example cannot be written.
    """
    chosen = {skill: group[: config.drawings_per_skill] for skill, group in samples.items()}
    prompts = [sample.prompt for group in chosen.values() for sample in group]
    ends = np.cumsum([len(group) for group in chosen.values()])
    drawn = np.split(model.draw(prompts, config.draw), ends[:-1])
    judged = {
        skill: _judge(detector, group, drawings_BSS3)
        for (skill, group), drawings_BSS3 in zip(chosen.items(), drawn, strict=True)
    }
    rest = [sample for group in samples.values() for sample in group[config.drawings_per_skill :]]
    return Drawings(
        scores={skill: _score(group) for skill, group in judged.items()},
        detector_agreement={skill: _agreement(group) for skill, group in judged.items()},
        frechet=_frechet(detector, list(judged.values()), rest),
        examples=[
            example
            for skill, group in judged.items()
            for example in _examples(skill, group, config.examples_per_skill, examples_folder)
        ],
    )


def draw_emoji(
    model: EvaluatedModel, config: EvaluateConfig, samples: Sequence[Sample], *, examples_folder: Path
) -> list[DrawingExample]:
    """Draws prompts that no detector judges; raises as `draw_scenes` does."""
    drawings = model.draw([sample.prompt for sample in samples], config.draw)
    return [
        _write_example(EMOJI, number, sample, drawing, examples_folder)
        for number, (sample, drawing) in enumerate(zip(samples, drawings, strict=True))
    ]


def _judge(detector: Detector, samples: Sequence[Sample], drawings_BSS3: NDArray[np.uint8]) -> _Judged:
    images_BSS3 = np.stack([read_picture(sample) for sample in samples])
    return _Judged(
        samples=samples,
        drawings_BSS3=drawings_BSS3,
        images_BSS3=images_BSS3,
        found_drawn=detector.detect(drawings_BSS3),
        found_real=detector.detect(images_BSS3),
    )


def _score(judged: _Judged) -> DrawingScore:
    requirements = [sample.truth["requirements"] for sample in judged.samples]
    return score_drawings(requirements, drawn=judged.found_drawn, real=judged.found_real)


def _agreement(judged: _Judged) -> float:
    truths = [Detection.from_truth(sample.truth) for sample in judged.samples]
    same = [found.same_as(truth) for found, truth in zip(judged.found_real, truths, strict=True)]
    return sum(same) / len(same)


def _frechet(detector: Detector, judged: Sequence[_Judged], rest: Sequence[Sample]) -> FrechetScore | None:
    if len(rest) < MIN_REFERENCE_IMAGES:
        return None
    reference = detector.features(np.stack([read_picture(sample) for sample in rest]))
    drawings = detector.features(np.concatenate([group.drawings_BSS3 for group in judged]))
    images = detector.features(np.concatenate([group.images_BSS3 for group in judged]))
    return FrechetScore(
        drawings=frechet_distance(drawings, reference),
        real=frechet_distance(images, reference),
        num_drawings=len(drawings),
        num_reference=len(reference),
    )


def _examples(skill: str, judged: _Judged, limit: int, folder: Path) -> list[DrawingExample]:
    return [
        _write_example(skill, number, sample, judged.drawings_BSS3[number], folder, judged.found_drawn[number])
        for number, sample in enumerate(judged.samples[:limit])
    ]


def _write_example(
    skill: str,
    number: int,
    sample: Sample,
    drawing_SS3: NDArray[np.uint8],
    folder: Path,
    found: Detection | None = None,
) -> DrawingExample:
    drawing, real = (f"{sample.source}-{side}-{skill}-{number}.png" for side in ("drawing", "real"))
    write_picture(drawing_SS3, folder / drawing)
    write_picture(read_picture(sample), folder / real)
    return DrawingExample(
        skill=skill,
        prompt=sample.prompt,
        drawing=drawing,
        real=real,
        found=found.describe() if found else "",
        right=satisfies(sample.truth["requirements"], found) if found else None,
    )
