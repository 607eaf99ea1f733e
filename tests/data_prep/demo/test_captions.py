"""Captions of scenes, word for word."""

import pytest

from data_prep.demo.captions import describe
from data_prep.demo.scene_grammar import Group, Scene
from data_prep.demo.sprites import NATURAL


@pytest.mark.parametrize(
    ("groups", "relation", "background", "caption"),
    [
        ([Group("dog", NATURAL)], None, "white", "a dog"),
        ([Group("apple", NATURAL)], None, "blue", "an apple on a blue background"),
        ([Group("dog", NATURAL), Group("cat", NATURAL)], None, "white", "a dog and a cat"),
        ([Group("apple", NATURAL, 3)], None, "white", "three apples"),
        ([Group("apple", "orange")], None, "white", "an orange apple"),
        ([Group("elephant", "red")], None, "pink", "a red elephant on a pink background"),
        ([Group("dog", NATURAL), Group("umbrella", NATURAL)], "below", "white", "a dog below an umbrella"),
        ([Group("dog", "red"), Group("cat", "blue")], None, "white", "a red dog and a blue cat"),
        ([Group("apple", "red", 2), Group("dog", NATURAL)], "left of", "white", "two red apples left of a dog"),
        ([Group("butterfly", NATURAL, 2), Group("fish", NATURAL, 2)], None, "white", "two butterflies and two fish"),
    ],
)
def test_captions(groups, relation, background, caption):
    scene = Scene(skill="any", background=background, groups=tuple(groups), relation=relation, objects=())
    assert describe(scene) == caption
