"""The rules of the six skills, and the scores of drawings."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.eval.scenes import shape_scenes
from ufork.eval.scenes.skills import RELATIONS, SKILLS, Detection, FoundObject, holds, satisfies, score_drawings


def found(*objects, background="white"):
    items = [(*item, 0, 0)[:4] if len(item) == 2 else item for item in objects]
    return Detection(
        background=background, objects=tuple(FoundObject(kind=k, colour=c, x=x, y=y) for k, c, x, y in items)
    )


def asked(*groups, relation=None, background=None):
    return {
        "groups": [{"kind": kind, "colour": colour, "count": count} for kind, colour, count in groups],
        "relation": relation,
        "background": background,
    }


DOG, CAT = ("dog", "natural"), ("cat", "natural")


@pytest.mark.parametrize(
    ("requirements", "detection", "expected"),
    [
        (asked(("dog", None, 1)), found(DOG), True),
        (asked(("dog", None, 1)), found(CAT), False),
        (asked(("dog", None, 1)), found(), False),
        (asked(("dog", None, 1)), found(DOG, DOG, CAT), True),
        (asked(("dog", None, 1), ("cat", None, 1)), found(CAT, DOG), True),
        (asked(("dog", None, 1), ("cat", None, 1)), found(DOG), False),
        (asked(("dog", None, 2)), found(DOG, DOG), True),
        (asked(("dog", None, 2)), found(DOG), False),
        (asked(("dog", None, 2)), found(DOG, DOG, DOG), False),
        (asked(("dog", "red", 1)), found(("dog", "red")), True),
        (asked(("dog", "red", 1)), found(DOG, ("cat", "red")), False),
        (asked(("dog", None, 1), background="blue"), found(DOG, background="blue"), True),
        (asked(("dog", None, 1), background="blue"), found(DOG), False),
        (asked(("dog", "red", 1), ("cat", "blue", 1)), found(("dog", "red"), ("cat", "blue")), True),
        (asked(("dog", "red", 1), ("cat", "blue", 1)), found(("dog", "blue"), ("cat", "red")), False),
    ],
)
def test_rules_of_each_skill(requirements, detection, expected):
    assert satisfies(requirements, detection) is expected


@pytest.mark.parametrize("relation", RELATIONS)
def test_relation_is_seen_from_the_second_group(relation):
    step_x, step_y = RELATIONS[relation]
    there = found(("dog", "natural", 24 + 24 * step_x, 24 + 24 * step_y), ("cat", "natural", 24, 24))
    mirrored = found(("dog", "natural", 24 - 24 * step_x, 24 - 24 * step_y), ("cat", "natural", 24, 24))
    requirements = asked(("dog", None, 1), ("cat", None, 1), relation=relation)
    assert satisfies(requirements, there)
    assert not satisfies(requirements, mirrored)


def test_relation_holds_for_every_counted_object():
    requirements = asked(("dog", None, 2), ("cat", None, 1), relation="left of")
    left, right, cat = ("dog", "natural", 0, 0), ("dog", "natural", 40, 0), ("cat", "natural", 24, 24)
    assert satisfies(requirements, found(left, ("dog", "natural", 0, 24), cat))
    assert not satisfies(requirements, found(left, right, cat))


@settings(deadline=None)
@given(st.lists(st.integers(0, 63), min_size=4, max_size=4))
def test_opposite_relations_exclude_each_other(corners):
    ax, ay, bx, by = corners
    first, second = FoundObject(kind="a", colour="red", x=ax, y=ay), FoundObject(kind="b", colour="red", x=bx, y=by)
    assert holds("left of", first, second) == holds("right of", second, first)
    assert not (holds("left of", first, second) and holds("right of", first, second))
    assert not (holds("above", first, second) and holds("below", first, second))
    assert sum(holds(relation, first, second) for relation in RELATIONS) <= 2


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SKILLS))
def test_truth_satisfies_its_own_prompt(seed, skill):
    truth, _ = shape_scenes.make_truth(shape_scenes.np.random.default_rng(seed), skill)
    detection = Detection.from_truth(truth)
    assert satisfies(truth["requirements"], detection)
    for order in permutations(detection.objects):
        shuffled = Detection(background=detection.background, objects=order)
        assert satisfies(truth["requirements"], shuffled) and shuffled.same_as(detection)


def test_same_as_compares_position_colour_and_background():
    one = found(("dog", "red", 8, 8))
    assert one.same_as(found(("dog", "red", 8, 8)))
    for other in (found(("dog", "red", 8, 16)), found(("dog", "blue", 8, 8)), found(background="blue"), found()):
        assert not one.same_as(other)


def test_chance_is_the_image_of_another_sample():
    prompts = [asked(("dog", None, 1)), asked(("dog", None, 1)), asked(("cat", None, 1))]
    real = [found(DOG), found(DOG), found(CAT)]
    score = score_drawings(prompts, drawn=[found(DOG), found(CAT), found(CAT)], real=real)
    assert score.score == pytest.approx(2 / 3)
    assert score.chance == pytest.approx(2 / 6)
    assert score.ceiling == 1
    assert score.normalised == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))


def test_normalised_score_is_0_where_chance_reaches_the_ceiling():
    score = score_drawings([asked(("dog", None, 1))] * 2, drawn=[found(DOG)] * 2, real=[found(DOG)] * 2)
    assert (score.chance, score.ceiling, score.normalised) == (1, 1, 0)
