"""What answers to questions are worth: accuracy beside the best that can be had without looking.

    AnsweredQuestion ... -> by skill -> AnswerScore: accuracy, chance, which answers are given for which

A question comes with its choices; the true answer is one of them, the model's may be anything. Pure Python.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

OTHER = "other"
"""Stands in a confusion for an answer that is none of the question's choices."""


@dataclass(frozen=True, kw_only=True)
class AnsweredQuestion:
    """A question about an image, its true answer and the model's."""

    skill: str
    question: str
    template: str
    """The question's wording before names are filled in: questions of one template have the same sort of answer."""
    choices: tuple[str, ...]
    """All answers that the template admits, in the same order for all its questions."""
    truth: str
    answer: str

    @property
    def right(self) -> bool:
        """The answer is the truth but for case, spaces and a closing full stop."""
        return normalise(self.answer) == normalise(self.truth)


@dataclass(frozen=True, kw_only=True)
class AnswerScore:
    """Answers to the questions of one skill; shares lie in [0, 1]."""

    num_questions: int
    accuracy: float
    chance: float
    """Accuracy of the best constant answer, see `blind_accuracy`."""
    confusion: dict[str, dict[str, int]]
    """confusion[truth][answer] = questions; what all choices of a question end in alike is left out of the labels.
    Truths and answers stand in the order of the choices, truths that never occurred are there without answers."""

    @property
    def normalised(self) -> float:
        """0 at chance, 1 when all is right; 0 where chance is always right and nothing can be told."""
        return (self.accuracy - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Of `accuracy`, by the binomial distribution."""
        return sqrt(self.accuracy * (1 - self.accuracy) / self.num_questions)


def score_answers(questions: Iterable[AnsweredQuestion]) -> dict[str, AnswerScore]:
    """Scores each skill that occurs in `questions`."""
    by_skill: dict[str, list[AnsweredQuestion]] = defaultdict(list)
    for question in questions:
        by_skill[question.skill].append(question)
    return {
        skill: AnswerScore(
            num_questions=len(group),
            accuracy=sum(question.right for question in group) / len(group),
            chance=blind_accuracy(group),
            confusion=confusion_counts(group),
        )
        for skill, group in by_skill.items()
    }


def blind_accuracy(questions: Sequence[AnsweredQuestion]) -> float:
    """Accuracy of one who does not see the images but knows how often each answer is the true one.

    For each template the most frequent true answer is given throughout. An answer is known by its place among the
    choices, so that "left of the cat" and "left of the dog" are the same answer to "where is ...?". The guess is the
    best in hindsight, on the evaluated questions themselves.
    """
    answers: dict[str, Counter[int]] = defaultdict(Counter)
    for question in questions:
        choices = [normalise(choice) for choice in question.choices]
        answers[question.template][choices.index(normalise(question.truth))] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(questions)


def confusion_counts(questions: Iterable[AnsweredQuestion]) -> dict[str, dict[str, int]]:
    """Counts which answers were given for which truth: result[truth][answer], as `AnswerScore.confusion` says."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    order: dict[str, int] = {}
    for question in questions:
        labels = _short_labels(question.choices)
        for label in labels.values():
            order.setdefault(label, len(order))
        answer = labels.get(normalise(question.answer), OTHER)
        counts[labels[normalise(question.truth)]][answer] += 1
    return {
        truth: {answer: counts[truth][answer] for answer in (*order, OTHER) if counts[truth][answer]} for truth in order
    }


def normalise(answer: str) -> str:
    """Lower case, single spaces, no closing full stop."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()


def _short_labels(choices: Sequence[str]) -> dict[str, str]:
    words = {normalise(choice): normalise(choice).split() for choice in choices}
    shared = 0
    while len(words) > 1 and all(len(parts) > shared + 1 for parts in words.values()):
        if len({parts[-1 - shared] for parts in words.values()}) > 1:
            break
        shared += 1
    return {choice: " ".join(parts[: len(parts) - shared]) for choice, parts in words.items()}
