"""Accuracy, the accuracy that needs no image, and the confusion counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ufork.eval.scenes.questions import OTHER, AnsweredQuestion, blind_accuracy, score_answers

YES_NO = ("yes", "no")


def ask(truth, answer, *, question="is there a dog?", choices=YES_NO, skill="single_object", template=None):
    return AnsweredQuestion(
        skill=skill, question=question, template=template or question, choices=choices, truth=truth, answer=answer
    )


@pytest.mark.parametrize(("answer", "right"), [("yes", True), (" Yes. ", True), ("yes no", False), ("", False)])
def test_case_spaces_and_full_stop_do_not_count(answer, right):
    assert ask("yes", answer).right is right


def test_score_of_a_skill():
    questions = [ask("yes", "yes"), ask("yes", "no"), ask("no", "no"), ask("yes", "perhaps")]
    score = score_answers(questions)["single_object"]
    assert (score.num_cases, score.score, score.chance) == (4, 0.5, 0.75)
    assert score.normalised == pytest.approx(-1)
    assert score.confusion == {"yes": {"yes": 1, "no": 1, OTHER: 1}, "no": {"no": 1}}
    assert list(score.confusion["yes"]) == ["yes", "no", OTHER]


def test_chance_is_computed_per_template():
    colours = ("red", "blue")
    questions = [ask("yes", "")] * 3 + [ask("blue", "", question="what colour is the dog?", choices=colours)] * 2
    assert blind_accuracy(questions) == 1
    assert blind_accuracy([*questions, ask("no", "")]) == pytest.approx(5 / 6)


def test_answers_with_the_same_relation_to_different_objects_are_one_constant_answer():
    def where(side, neighbour):
        choices = tuple(f"{word} the {neighbour}" for word in ("left of", "right of", "above", "below"))
        return ask(f"{side} the {neighbour}", "", template="where is the {kind}?", choices=choices, skill="position")

    questions = [where("left of", "cat"), where("left of", "car"), where("left of", "fish"), where("below", "cat")]
    assert blind_accuracy(questions) == pytest.approx(3 / 4)
    assert score_answers(questions)["position"].confusion == {
        "left of": {OTHER: 3},
        "right of": {},
        "above": {},
        "below": {OTHER: 1},
    }


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(YES_NO), st.sampled_from([*YES_NO, "?"])), min_size=1))
def test_no_constant_answer_beats_chance(pairs):
    questions = [ask(truth, answer) for truth, answer in pairs]
    score = score_answers(questions)["single_object"]
    for constant in YES_NO:
        assert sum(truth == constant for truth, _ in pairs) / len(pairs) <= score.chance
    assert sum(sum(row.values()) for row in score.confusion.values()) == len(pairs)
    assert score.normalised <= 1
