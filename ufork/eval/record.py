"""The record that an evaluation leaves: scores per skill, their means, examples as pictures.

Evaluation --save--> evaluation.json (read by the report) ; --summary--> the lines that a terminal shows
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ufork.eval.scenes.questions import AnswerScore
from ufork.eval.scenes.skills import SKILLS, DrawingScore
from ufork.files import make_folder, write_whole

VERSION = 1
"""Of the layout of evaluation.json."""


@dataclass(frozen=True, kw_only=True)
class FrechetScore:
    """Distances in the detector's features from held-out real images (the reference), that were not drawn."""

    drawings: float
    """Of the drawings."""
    real: float
    """Of the real images of the prompts drawn, as many as there are drawings: what a perfect painter gets."""
    num_drawings: int
    num_reference: int


@dataclass(frozen=True, kw_only=True)
class AnswerExample:
    """A question answered, its image beside evaluation.json."""

    skill: str
    image: str
    question: str
    truth: str
    answer: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class DrawingExample:
    """A prompt drawn, drawing and real image beside evaluation.json."""

    skill: str
    prompt: str
    drawing: str
    real: str
    found: str
    """What the detector found in the drawing; empty where no detector judges."""
    right: bool | None
    """None where no detector judges."""


@dataclass(frozen=True, kw_only=True)
class EmojiScore:
    """Answers about emoji of concepts that training never showed; outside the means over skills."""

    answers: dict[str, AnswerScore]
    """By the sort of question."""
    answer_examples: list[AnswerExample]
    drawing_examples: list[DrawingExample]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured; `to_mapping` adds what follows from it."""

    answers: dict[str, AnswerScore]
    """By skill, in the order of SKILLS; empty where the model has no understanding branch."""
    drawings: dict[str, DrawingScore]
    """By skill, in the order of SKILLS; empty where the model has no generation branch."""
    detector_agreement: dict[str, float]
    """By skill: share of real held-out images in which the detector finds exactly what is there: every object, its
    kind, colour and place, and the background."""
    frechet: FrechetScore | None
    """None where the split has too few images that were not drawn."""
    answer_examples: list[AnswerExample]
    """The first questions of each skill, not picked."""
    drawing_examples: list[DrawingExample]
    """The first prompts of each skill, not picked."""
    emoji: EmojiScore | None
    seconds: float
    """How long it took."""

    @property
    def answers_mean(self) -> dict[str, float] | None:
        """Means over skills of accuracy, chance and the normalised score; None without answers."""
        return _means(self.answers.values(), ("accuracy", "chance", "normalised"))

    @property
    def drawings_mean(self) -> dict[str, float] | None:
        """Means over skills of the share satisfied, chance, ceiling and the normalised score; None without drawings."""
        return _means(self.drawings.values(), ("satisfied", "chance", "ceiling", "normalised"))

    def to_mapping(self) -> dict[str, Any]:
        """All of it as JSON takes it, with means, normalised scores and standard errors."""
        mapping = {"version": VERSION, **asdict(self)}
        _add_derived(mapping["answers"], self.answers)
        _add_derived(mapping["drawings"], self.drawings)
        if self.emoji:
            _add_derived(mapping["emoji"]["answers"], self.emoji.answers)
        return mapping | {"answers_mean": self.answers_mean, "drawings_mean": self.drawings_mean}

    def save(self, path: Path) -> None:
        """Writes the JSON, whole or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        make_folder(path.parent)
        write_whole(path, json.dumps(self.to_mapping(), indent=1, ensure_ascii=False) + "\n")

    def summary(self) -> str:
        """A table for a terminal: a row per skill, the means, and how far that is from chance."""
        lines = [f"{'':<18}  {'answers':>7} {'chance':>6}    {'drawings':>8} {'chance':>6} {'ceiling':>7}"]
        rows = {skill: (self.answers.get(skill), self.drawings.get(skill)) for skill in SKILLS}
        for skill, (asked, drawn) in rows.items():
            lines.append(_row(skill.replace("_", " "), vars(asked) if asked else None, vars(drawn) if drawn else None))
        lines.append(_row("mean over skills", self.answers_mean, self.drawings_mean))
        if self.answers_mean:
            lines.append(f"answers:  {self.answers_mean['normalised']:.2f} of the way from chance to perfect")
        if self.drawings_mean:
            way = self.drawings_mean["normalised"]
            lines.append(f"drawings: {way:.2f} of the way from chance to the detector's ceiling")
        if self.frechet:
            lines.append(f"Fréchet distance: drawings {self.frechet.drawings:.2f}, real images {self.frechet.real:.2f}")
        return "\n".join(lines)


def _row(name: str, asked: Mapping[str, float] | None, drawn: Mapping[str, float] | None) -> str:
    left = f"{asked['accuracy']:>7.2f} {asked['chance']:>6.2f}" if asked else f"{'-':>7} {'-':>6}"
    numbers = [f"{drawn[key]:.2f}" if drawn else "-" for key in ("satisfied", "chance", "ceiling")]
    return f"{name:<18}  {left}    {numbers[0]:>8} {numbers[1]:>6} {numbers[2]:>7}"


def _add_derived(rows: dict[str, Any], scores: Mapping[str, AnswerScore | DrawingScore]) -> None:
    for name, score in scores.items():
        rows[name] |= {"normalised": score.normalised, "standard_error": score.standard_error}


def _means(scores: Iterable[AnswerScore | DrawingScore], names: tuple[str, ...]) -> dict[str, float] | None:
    rows = [[getattr(score, name) for name in names] for score in scores]
    if not rows:
        return None
    return {name: sum(column) / len(rows) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
