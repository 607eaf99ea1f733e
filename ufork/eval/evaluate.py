"""Measures a trained model on the held-out split.

    scenes: questions -> answering.answer -> score_answers                               }
            prompts -> drawing.draw -> detector.detect -> score_drawings, Fréchet        } -> Evaluation
    emoji, when there: questions and drawings of unseen concepts, outside the six skills }

Every held-out sample of a skill shows a combination that training never did; only its first turn is asked. Nothing is
picked: each skill's first samples are used, in the order of the shards.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.errors import SampleError, ShardError
from ufork.eval.answering import NO_ANSWERS, Answers, ask
from ufork.eval.config import EvaluateConfig
from ufork.eval.drawing import NO_DRAWINGS, draw_emoji, draw_scenes
from ufork.eval.model import EvaluatedModel
from ufork.eval.record import EmojiScore, Evaluation
from ufork.eval.scenes.detector import Detector
from ufork.eval.scenes.skills import SKILLS
from ufork.vocabulary import Task

logger = logging.getLogger(__name__)


def evaluate(
    model: EvaluatedModel,
    config: EvaluateConfig,
    heldout_folder: Path,
    detector: Detector,
    *,
    examples_folder: Path,
    emoji_folder: Path | None = None,
) -> Evaluation:
    """Evaluates what `model` can do; the answers and drawings that serve as examples are written as PNGs.

    Args:
        model: answers and draws.
        config: on how many samples, and how drawings are sampled.
        heldout_folder: the scenes' held-out source folder, with images.
        detector: judges the drawings; fitted on the training scenes.
        examples_folder: is made, and filled with the pictures that the evaluation names.
        emoji_folder: the emoji's held-out source folder; None leaves emoji out.

    Raises:
        ShardError: a source is missing, or has no sample of one of the six skills.
        SampleError: a sample cannot be understood.
        CheckpointError: the detector was fitted on pictures of another size.
        StorageError: an example cannot be written.
    """
    start = time.monotonic()
    answers, drawings = NO_ANSWERS, NO_DRAWINGS
    if Task.UNDERSTANDING in model.tasks:
        answers = _ask_scenes(model, config, heldout_folder, examples_folder)
        logger.info("evaluation: questions answered after %.0f s", time.monotonic() - start)
    if Task.GENERATION in model.tasks:
        samples = _by_skill(heldout_folder, Task.GENERATION)
        drawings = draw_scenes(model, config, samples, detector, examples_folder=examples_folder)
        logger.info("evaluation: prompts drawn after %.0f s", time.monotonic() - start)
    emoji = _evaluate_emoji(model, config, emoji_folder, examples_folder) if emoji_folder else None
    return Evaluation(
        answers=answers.scores,
        answer_examples=answers.examples,
        drawings=drawings.scores,
        detector_agreement=drawings.detector_agreement,
        frechet=drawings.frechet,
        drawing_examples=drawings.examples,
        emoji=emoji,
        seconds=time.monotonic() - start,
    )


def _ask_scenes(model: EvaluatedModel, config: EvaluateConfig, folder: Path, examples_folder: Path) -> Answers:
    groups = _by_skill(folder, Task.UNDERSTANDING).values()
    samples = [sample for group in groups for sample in group[: config.questions_per_skill]]
    return _ask(model, config, samples, examples_folder)


def _evaluate_emoji(model: EvaluatedModel, config: EvaluateConfig, folder: Path, examples_folder: Path) -> EmojiScore:
    questions = _first(ShardSource(folder, Task.UNDERSTANDING), config.emoji_questions)
    prompts = _first(ShardSource(folder, Task.GENERATION), config.emoji_drawings)
    answers, drawings = NO_ANSWERS, []
    if questions and Task.UNDERSTANDING in model.tasks:
        answers = _ask(model, config, questions, examples_folder)
    if prompts and Task.GENERATION in model.tasks:
        drawings = draw_emoji(model, config, prompts, examples_folder=examples_folder)
    return EmojiScore(answers=answers.scores, answer_examples=answers.examples, drawing_examples=drawings)


def _ask(model: EvaluatedModel, config: EvaluateConfig, samples: Sequence[Sample], examples_folder: Path) -> Answers:
    return ask(
        model,
        samples,
        config=config.answer,
        examples_per_skill=config.examples_per_skill,
        examples_folder=examples_folder,
    )


def _first(source: ShardSource, limit: int) -> list[Sample]:
    return [source[number] for number in range(min(len(source), limit))]


def _by_skill(folder: Path, task: Task) -> dict[str, list[Sample]]:
    """All samples of each skill, in the order of the shards."""
    source = ShardSource(folder, task)
    groups: dict[str, list[Sample]] = {skill: [] for skill in SKILLS}
    for sample in _first(source, len(source)):
        skill = _skill(sample)
        if skill in groups:
            groups[skill].append(sample)
    if missing := [skill for skill, group in groups.items() if not group]:
        raise ShardError(f"{folder}: no {task} sample of {', '.join(missing)}; prepare more held-out samples")
    return groups


def _skill(sample: Sample) -> str:
    try:
        if sample.task == Task.UNDERSTANDING:
            return str(sample.truth["questions"][0]["skill"])
        return str(sample.truth["skill"])
    except (KeyError, IndexError, TypeError):
        raise SampleError(f"{sample.id}: its truth names no skill; prepare the data again") from None
