"""Held-out combinations: spread evenly, and some of each skill."""

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.demo.scene_grammar import SKILLS, ScenesConfig
from data_prep.demo.splits import choose_held_out, keys_of, relation_key
from data_prep.demo.sprites import NATURAL, WHITE, Placed

CONFIGS = st.builds(
    ScenesConfig,
    num_kinds=st.integers(4, 12),
    num_tints=st.integers(2, 6),
    num_backgrounds=st.integers(2, 4),
    max_count=st.integers(2, 4),
    held_out_share=st.sampled_from([0.05, 0.12, 0.3]),
)


def test_keys_of_a_picture():
    objects = [Placed("dog", "red", 0, 0), Placed("cat", "blue", 32, 40), Placed("dog", "red", 40, 0)]
    assert keys_of("pink", objects, 24) == {
        ("counting", "dog", 2, "pink"),
        ("colours", "dog", "red", "pink"),
        ("colours", "cat", "blue", "pink"),
        ("two_objects", "cat", "dog", "pink"),
        ("position", "dog", "left of", "cat", "pink"),
        ("position", "dog", "above", "cat", "pink"),
        ("attribute_binding", "cat", "blue", "dog", "red", "pink"),
    }
    assert keys_of("pink", [Placed("dog", NATURAL, 0, 0)], 24) == {("single_object", "dog", "pink")}


def test_natural_or_equal_colours_give_no_binding():
    pair = [Placed("dog", NATURAL, 0, 0), Placed("cat", "blue", 40, 0)]
    assert not [key for key in keys_of(WHITE, pair, 24) if key[0] == "attribute_binding"]
    pair[0] = Placed("dog", "blue", 0, 0)
    assert not [key for key in keys_of(WHITE, pair, 24) if key[0] == "attribute_binding"]


def test_opposite_relations_have_one_key():
    assert relation_key("cat", "right of", "dog", WHITE) == relation_key("dog", "left of", "cat", WHITE)
    assert relation_key("cat", "below", "dog", WHITE) == relation_key("dog", "above", "cat", WHITE)
    assert relation_key("cat", "left of", "dog", WHITE) != relation_key("dog", "left of", "cat", WHITE)


@settings(max_examples=25, deadline=None)
@given(CONFIGS, st.integers(0, 5))
def test_each_skill_has_held_out_keys_and_no_element_loses_more_than_its_share(config, seed):
    held_out = choose_held_out(config, seed)
    assert set(held_out.by_skill) == set(SKILLS)
    for skill, keys in held_out.by_skill.items():
        assert keys and len(set(keys)) == len(keys), skill
    relations = Counter((frozenset((a, b)), ground) for _, a, _, b, ground in held_out.by_skill["position"])
    assert max(relations.values()) <= math.ceil(config.held_out_share * 4), "two kinds keep relations to be placed in"
    lost = Counter(key[2] for key in held_out.by_skill["counting"])
    assert max(lost.values()) <= math.ceil(config.held_out_share * config.num_kinds * config.num_backgrounds)
    lost = Counter(key[2] for key in held_out.by_skill["colours"])
    assert max(lost.values()) <= math.ceil(config.held_out_share * config.num_kinds * config.num_backgrounds)
    for kind in config.kind_names:
        tints = sum(key[1] == kind for key in held_out.by_skill["colours"])
        partners = sum(kind in key[1:3] for key in held_out.by_skill["two_objects"])
        assert tints < config.num_tints * config.num_backgrounds
        assert partners < (config.num_kinds - 1) * config.num_backgrounds
    assert not [key for key in held_out.by_skill["single_object"] if WHITE in key]


@settings(max_examples=10, deadline=None)
@given(CONFIGS, st.integers(0, 5))
def test_relations_and_bindings_are_new_in_one_way_only(config, seed):
    held_out = choose_held_out(config, seed)
    pairs = {key[1:] for key in held_out.by_skill["two_objects"]}
    tinted = {key[1:] for key in held_out.by_skill["colours"]}
    for _, a, _, b, ground in held_out.by_skill["position"]:
        assert (min(a, b), max(a, b), ground) not in pairs
    for _, a, first, b, second, ground in held_out.by_skill["attribute_binding"]:
        assert (a, b, ground) not in pairs and not {(a, first, ground), (b, second, ground)} & tinted


def test_the_choice_depends_on_the_seed():
    config = ScenesConfig()
    assert choose_held_out(config, 1) == choose_held_out(config, 1)
    assert choose_held_out(config, 1).keys != choose_held_out(config, 2).keys
