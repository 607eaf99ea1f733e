"""Questions about scenes: each answer is recomputed here from the question's words and the ground truth."""

import re
from collections import Counter, defaultdict

import pytest

from data_prep.demo.scene_grammar import COUNT_WORDS, SKILLS, ScenesConfig
from data_prep.demo.scenes import SceneSource
from data_prep.demo.sprites import KINDS
from ufork.vocabulary import Task

CONFIG = ScenesConfig(num_kinds=8, num_tints=4, num_train_per_task=1500, num_heldout_per_task=240)
SINGULAR = {kind.plural: kind.name for kind in KINDS} | {kind.name: kind.name for kind in KINDS}
NEVER_IN_TRUTH = "natural"


@pytest.fixture(scope="module")
def samples():
    source = SceneSource(CONFIG, seed=3)
    return {
        split: [
            source.sample(split, Task.UNDERSTANDING, number)
            for number in range(source.num_samples(split, Task.UNDERSTANDING))
        ]
        for split in ("train", "heldout")
    }


def is_related(truth, first, relation, second) -> bool:
    a, b = (next(one for one in truth["objects"] if one["kind"] == kind) for kind in (first, second))
    size = CONFIG.sprite_px
    return {
        "left of": a["x"] + size <= b["x"],
        "right of": b["x"] + size <= a["x"],
        "above": a["y"] + size <= b["y"],
        "below": b["y"] + size <= a["y"],
    }[relation]


def correct_answers(question: str, truth: dict) -> set[str]:
    """Returns all correct answers; a question is fair if there is exactly one."""
    kinds = [one["kind"] for one in truth["objects"]]
    colours = defaultdict(set)
    for one in truth["objects"]:
        colours[one["kind"]].add(one["colour"])
    if question == "what is in the picture?":
        return set(kinds)
    if question == "what colour is the background?":
        return {truth["background"]}
    if match := re.fullmatch(r"is there an? (\w+)\?", question):
        return {"yes" if match[1] in kinds else "no"}
    if match := re.fullmatch(r"how many (\w+) are there\?", question):
        return {COUNT_WORDS[kinds.count(SINGULAR[match[1]])]}
    if match := re.fullmatch(r"what is there besides the (\w+)\?", question):
        return set(kinds) - {match[1]}
    if match := re.fullmatch(r"what colour (?:is|are) the (\w+)\?", question):
        return colours[SINGULAR[match[1]]]
    if match := re.fullmatch(r"which thing is (\w+)\?", question):
        return {one["kind"] for one in truth["objects"] if one["colour"] == match[1]}
    if match := re.fullmatch(r"where is the (\w+)\?", question):
        (other,) = set(kinds) - {match[1]}
        return {
            f"{relation} the {other}"
            for relation in ("left of", "right of", "above", "below")
            if is_related(truth, match[1], relation, other)
        }
    match = re.fullmatch(r"is the (\w+) (left of|right of|above|below) the (\w+)\?", question)
    return {"yes" if is_related(truth, *match.groups()) else "no"}


def test_each_question_has_exactly_one_correct_answer(samples):
    for sample in samples["train"] + samples["heldout"]:
        for question, answer in sample.turns:
            assert correct_answers(question, sample.truth) == {answer}, (question, sample.truth)
            assert answer != NEVER_IN_TRUTH


def test_question_records_match_the_turns_and_their_choices_contain_the_answer(samples):
    for sample in samples["train"] + samples["heldout"]:
        assert len(sample.turns) == len(sample.truth["questions"])
        for (_, answer), record in zip(sample.turns, sample.truth["questions"], strict=True):
            assert answer in record["choices"]
            assert record["skill"] in SKILLS


def test_questions_of_a_template_share_the_order_of_their_choices(samples):
    for sample in samples["train"]:
        for record in sample.truth["questions"]:
            if record["template"] == "where is the {kind}?":
                words = [choice.split(" the ")[0] for choice in record["choices"]]
                assert words == ["left of", "right of", "above", "below"]
            elif record["template"] == "how many {kinds} are there?":
                assert record["choices"] == ["one", "two", "three", "four"]


def test_no_question_is_repeated_and_most_pictures_get_all_turns(samples):
    counts = Counter()
    for sample in samples["train"]:
        questions = [question for question, _ in sample.turns]
        assert len(set(questions)) == len(questions)
        counts[len(questions)] += 1
    assert max(counts) == CONFIG.num_turns
    assert counts[CONFIG.num_turns] > 0.9 * len(samples["train"])


def test_the_first_held_out_question_is_of_the_samples_skill(samples):
    for sample in samples["heldout"]:
        first = sample.truth["questions"][0]
        assert first["skill"] == sample.truth["skill"]
        assert first["template"] != "what colour is the background?"


def test_answers_cannot_be_guessed_from_the_question(samples):
    answers = defaultdict(Counter)
    for sample in samples["train"]:
        for (_, answer), record in zip(sample.turns, sample.truth["questions"], strict=True):
            answers[record["template"]][answer.split(" the ")[0]] += 1
    expected = {
        "is there a {kind}?": 2,
        "is the {kind} {relation} the {kind}?": 2,
        "where is the {kind}?": 4,
        "how many {kinds} are there?": 4,
        "what colour is the background?": 4,
        "what colour is the {kind}?": 4,
        "which thing is {colour}?": 8,
        "what is in the picture?": 8,
        "what is there besides the {kind}?": 8,
    }
    assert answers.keys() == expected.keys()
    for template, counts in answers.items():
        assert len(counts) == expected[template]
        assert max(counts.values()) < 1.5 * sum(counts.values()) / len(counts), (template, counts)


def test_the_order_of_training_questions_is_random(samples):
    first = Counter(sample.truth["questions"][0]["skill"] == sample.truth["skill"] for sample in samples["train"])
    assert 0.2 < first[True] / len(samples["train"]) < 0.8
