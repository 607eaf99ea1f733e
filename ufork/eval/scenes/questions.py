"""Questions with choices: cases, scores of answers, and the accuracy that needs no image.

    sample -> question_case -> Case      answers -> answer_scores -> CaseScore ... -> answer_table -> ScoreTable
    AnsweredQuestion ... by skill -> GroupScore: accuracy, chance, which answers are given for which truth

A question comes with its choices; the true answer is one of them, the model's may be anything.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any

from ufork.data.shards.sample import Sample
from ufork.errors import SampleError
from ufork.eval.benchmark import Case, Output, Question
from ufork.eval.pictures import image_bytes
from ufork.eval.record import CaseScore, GroupScore, ScoreTable
from ufork.vocabulary import Task

OTHER = "other"
"""Label in a confusion of an answer that is none of the question's choices."""


@dataclass(frozen=True, kw_only=True)
class AnsweredQuestion:
    """A question about an image, its true answer and the model's."""

    skill: str
    question: str
    template: str
    """The question's wording before names are filled in: questions of one template have the same kind of answer."""
    choices: tuple[str, ...]
    """All answers that the template admits, in the same order for all its questions."""
    truth: str
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer is the truth, up to case, spaces and a closing full stop."""
        return normalise(self.answer) == normalise(self.truth)


def question_case(sample: Sample) -> Case:
    """Makes a case of the sample's first turn; its group is the question's skill.

    Raises:
        SampleError: the sample has no image, or no question whose answer is one of its choices.
    """
    if not sample.turns:
        raise SampleError(f"{sample.id}: has no question to ask; prepare the data again")
    question, truth = sample.turns[0]
    skill, template, choices = _described(sample)
    if normalise(truth) not in [normalise(choice) for choice in choices]:
        raise SampleError(f"{sample.id}: the answer {truth!r} is none of the choices {list(choices)}")
    return Case(
        id=sample.id,
        group=skill,
        request=Question(image=image_bytes(sample), text=question),
        truth=AnsweredQuestion(
            skill=skill, question=question, template=template, choices=choices, truth=truth, answer=""
        ),
    )


def answer_scores(cases: Sequence[Case], answers: Sequence[Output]) -> list[CaseScore]:
    """Scores the answers to cases of `question_case`."""
    scores = []
    for case, answer in zip(cases, answers, strict=True):
        answered = replace(case.truth, answer=str(answer))
        scores.append(
            CaseScore(
                group=case.group,
                task=case.task,
                right=answered.right,
                expected=answered.truth,
                details=asdict(answered),
            )
        )
    return scores


def answer_table(scores: Iterable[CaseScore], *, order: Sequence[str] = ()) -> list[ScoreTable]:
    """Returns the table of answers by skill, those in `order` first; an empty list without answers."""
    questions = [_from_details(score.details) for score in scores if score.task is Task.UNDERSTANDING]
    groups = score_answers(questions)
    names = [name for name in order if name in groups] + [name for name in groups if name not in order]
    if not names:
        return []
    table = ScoreTable(
        task=Task.UNDERSTANDING, title="Answers", measure="right", groups={name: groups[name] for name in names}
    )
    return [table]


def score_answers(questions: Iterable[AnsweredQuestion]) -> dict[str, GroupScore]:
    """Scores each skill that occurs in `questions`; chance is `blind_accuracy`, the error binomial."""
    by_skill: dict[str, list[AnsweredQuestion]] = defaultdict(list)
    for question in questions:
        by_skill[question.skill].append(question)
    scores = {}
    for skill, group in by_skill.items():
        accuracy = sum(question.right for question in group) / len(group)
        scores[skill] = GroupScore(
            score=accuracy,
            num_cases=len(group),
            chance=blind_accuracy(group),
            standard_error=sqrt(accuracy * (1 - accuracy) / len(group)),
            confusion=confusion_counts(group),
        )
    return scores


def blind_accuracy(questions: Sequence[AnsweredQuestion]) -> float:
    """Returns the accuracy of the best constant answer to each template, which needs no image.

    For each template the most frequent true answer is given throughout. Answers are identified by their index among the
    choices, so that "left of the cat" and "left of the dog" are the same answer to "where is ...?". The guess is the
    best in hindsight, on the evaluated questions themselves.
    """
    answers: dict[str, Counter[int]] = defaultdict(Counter)
    for question in questions:
        choices = [normalise(choice) for choice in question.choices]
        answers[question.template][choices.index(normalise(question.truth))] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(questions)


def confusion_counts(questions: Iterable[AnsweredQuestion]) -> dict[str, dict[str, int]]:
    """Counts which answers were given for which truth: result[truth][answer].

    Words that all choices of a question end in are dropped from the labels. Truths and answers are in the order of the
    choices; truths that never occurred are there without answers.
    """
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
    """Returns the answer in lower case, with single spaces and no closing full stop."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()


def _described(sample: Sample) -> tuple[str, str, tuple[str, ...]]:
    """Returns skill, template and choices of the first question."""
    try:
        first = sample.truth["questions"][0]
        return str(first["skill"]), str(first["template"]), tuple(map(str, first["choices"]))
    except (KeyError, IndexError, TypeError):
        raise SampleError(
            f"{sample.id}: its truth names no skill, template and choices; prepare the data again"
        ) from None


def _from_details(details: dict[str, Any]) -> AnsweredQuestion:
    return AnsweredQuestion(**{**details, "choices": tuple(details["choices"])})


def _short_labels(choices: Sequence[str]) -> dict[str, str]:
    words = {normalise(choice): normalise(choice).split() for choice in choices}
    shared = 0
    while len(words) > 1 and all(len(label) > shared + 1 for label in words.values()):
        if len({label[-1 - shared] for label in words.values()}) > 1:
            break
        shared += 1
    return {choice: " ".join(label[: len(label) - shared]) for choice, label in words.items()}
