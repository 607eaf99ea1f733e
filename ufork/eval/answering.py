"""Asks a model the first question of each sample.

samples -> images and questions -> model.answer -> AnsweredQuestion -> scores per skill, examples
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ufork.data.shards.sample import Sample
from ufork.errors import SampleError
from ufork.eval.model import EvaluatedModel
from ufork.eval.pictures import read_picture, write_picture
from ufork.eval.record import AnswerExample
from ufork.eval.scenes.questions import AnsweredQuestion, AnswerScore, normalise, score_answers
from ufork.infer.config import AnswerConfig


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Scores by skill, and the first of each skill as examples."""

    scores: dict[str, AnswerScore]
    examples: list[AnswerExample]


NO_ANSWERS = Answers(scores={}, examples=[])


def ask(
    model: EvaluatedModel,
    samples: Sequence[Sample],
    *,
    config: AnswerConfig,
    examples_per_skill: int,
    examples_folder: Path,
) -> Answers:
    """Asks the first turn of every sample and scores the answers; examples' images are written as PNGs.

    Raises:
        SampleError: a sample has no question with choices among which its answer is, or no image.
        StorageError: an example cannot be written.
    """
    images = np.stack([read_picture(sample) for sample in samples])
    answers = model.answer(images, [_first_turn(sample)[0] for sample in samples], config)
    answered = [_answered(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
    return Answers(
        scores=score_answers(answered), examples=_examples(samples, answered, examples_per_skill, examples_folder)
    )


def _first_turn(sample: Sample) -> tuple[str, str]:
    if not sample.turns:
        raise SampleError(f"{sample.id}: has no question to ask; prepare the data again")
    return sample.turns[0]


def _answered(sample: Sample, answer: str) -> AnsweredQuestion:
    question, truth = _first_turn(sample)
    try:
        asked = sample.truth["questions"][0]
        skill, template, choices = str(asked["skill"]), str(asked["template"]), tuple(asked["choices"])
    except (KeyError, IndexError, TypeError):
        raise SampleError(
            f"{sample.id}: its truth names no skill, template and choices; prepare the data again"
        ) from None
    if normalise(truth) not in [normalise(choice) for choice in choices]:
        raise SampleError(f"{sample.id}: the answer {truth!r} is none of the choices {list(choices)}")
    return AnsweredQuestion(
        skill=skill, question=question, template=template, choices=choices, truth=truth, answer=answer
    )


def _examples(
    samples: Sequence[Sample], answered: Sequence[AnsweredQuestion], per_skill: int, folder: Path
) -> list[AnswerExample]:
    examples: list[AnswerExample] = []
    taken: Counter[str] = Counter()
    for sample, question in zip(samples, answered, strict=True):
        if taken[question.skill] == per_skill:
            continue
        name = f"{sample.source}-answer-{question.skill}-{taken[question.skill]}.png"
        taken[question.skill] += 1
        write_picture(read_picture(sample), folder / name)
        examples.append(
            AnswerExample(
                skill=question.skill,
                image=name,
                question=question.question,
                truth=question.truth,
                answer=question.answer,
                right=question.right,
            )
        )
    return examples
