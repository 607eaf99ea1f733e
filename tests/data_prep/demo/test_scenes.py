"""Scenes: pixels match the ground truth, and no combination is in both splits (recomputed here from the truth)."""

import io
from collections import Counter
from itertools import combinations
from random import Random

import numpy as np
import pytest
from PIL import Image

from data_prep.demo import scene_sampling
from data_prep.demo.scene_grammar import COMPOSITION, RELATIONS, SKILLS, ScenesConfig
from data_prep.demo.scene_sampling import SceneSampler
from data_prep.demo.scenes import SceneSource
from data_prep.demo.sprites import WHITE, Placed, SpriteSheet
from ufork.errors import ConfigError
from ufork.vocabulary import Task

NUM_SAMPLES = {"train": 1000, "heldout": 240}
CONFIG = ScenesConfig(
    num_kinds=8, num_tints=4, num_train_per_task=NUM_SAMPLES["train"], num_heldout_per_task=NUM_SAMPLES["heldout"]
)
SPRITE = CONFIG.sprite_px


@pytest.mark.parametrize("seed", range(4))
def test_every_held_out_combination_has_a_scene(seed):
    config = CONFIG.model_copy(update={"canvas_px": 96, "sprite_px": 32, "position_step_px": 32})
    sampler = SceneSampler(config, seed)
    for skill, keys in sampler.held_out.by_skill.items():
        scenes = [sampler.heldout(Random(0), key, even_backgrounds=True) for key in keys]
        assert {scene.skill for scene in scenes} == {skill}


@pytest.fixture(scope="module")
def source():
    return SceneSource(CONFIG, seed=5)


@pytest.fixture(scope="module")
def samples(source):
    return {
        (split, task): [source.sample(split, task, number) for number in range(source.num_samples(split, task))]
        for split in NUM_SAMPLES
        for task in Task
    }


def by_split(samples, split):
    return [sample for task in Task for sample in samples[split, task]]


def combinations_in(truth: dict) -> dict[str, set]:
    """Returns the combinations in a picture by skill, from its background and objects."""
    objects, background = truth["objects"], truth["background"]
    counts = Counter(one["kind"] for one in objects)
    alone = len(objects) == 1 and objects[0]["colour"] == "natural"
    found = {
        "single_object": {(one["kind"],) for one in objects if alone},
        "counting": {(kind, count) for kind, count in counts.items() if count > 1},
        "colours": {(one["kind"], one["colour"]) for one in objects if one["colour"] != "natural"},
        "two_objects": {frozenset(pair) for pair in combinations(counts, 2)},
        "position": set(),
        "attribute_binding": set(),
    }
    for a in objects:
        for b in objects:
            if a["kind"] == b["kind"]:
                continue
            if a["x"] + SPRITE <= b["x"]:
                found["position"].add((a["kind"], "left of", b["kind"]))
            if a["y"] + SPRITE <= b["y"]:
                found["position"].add((a["kind"], "above", b["kind"]))
            if len({a["colour"], b["colour"], "natural"}) == 3:
                pair = frozenset({(a["kind"], a["colour"]), (b["kind"], b["colour"])})
                found["attribute_binding"].add(pair)
    return {skill: {(elements, background) for elements in combined} for skill, combined in found.items()}


def test_no_training_picture_has_the_combination_that_a_held_out_sample_tests(samples):
    trained = {skill: set() for skill in SKILLS}
    for sample in by_split(samples, "train"):
        for skill, found in combinations_in(sample.truth).items():
            trained[skill] |= found
    for sample in by_split(samples, "heldout"):
        found = combinations_in(sample.truth)
        skill = sample.truth["skill"]
        assert found[skill] - trained[skill], (sample.prompt, sample.turns, sample.truth)


def test_no_training_picture_has_a_held_out_combination_of_any_skill(samples, source):
    held_out = source.held_out.by_skill
    for sample in by_split(samples, "train"):
        found = combinations_in(sample.truth)
        for skill in ("single_object", "counting", "colours", "position"):
            assert not found[skill] & {(key[1:-1], key[-1]) for key in held_out[skill]}, sample.truth
        pairs = {(frozenset(key[1:-1]), key[-1]) for key in held_out["two_objects"]}
        assert not found["two_objects"] & pairs, sample.truth
        bindings = {(frozenset({(a, c), (b, d)}), ground) for _, a, c, b, d, ground in held_out["attribute_binding"]}
        assert not found["attribute_binding"] & bindings, sample.truth


def test_every_kind_colour_background_count_and_relation_is_trained(samples):
    for task in Task:
        truths = [sample.truth for sample in samples["train", task]]
        objects = [one for truth in truths for one in truth["objects"]]
        assert {one["kind"] for one in objects} == set(CONFIG.kind_names)
        assert {one["colour"] for one in objects} == {"natural", *CONFIG.tints}
        assert {truth["background"] for truth in truths} == set(CONFIG.backgrounds)
        groups = [group for truth in truths for group in truth["requirements"]["groups"]]
        assert {group["count"] for group in groups} == set(range(1, CONFIG.max_count + 1))
        assert {truth["requirements"]["relation"] for truth in truths} == {None, *RELATIONS}
        assert {truth["skill"] for truth in truths} == {*SKILLS, COMPOSITION}


def test_held_out_skills_and_their_combinations_are_balanced(samples):
    for task in Task:
        skills = Counter(sample.truth["skill"] for sample in samples["heldout", task])
        assert skills == dict.fromkeys(SKILLS, NUM_SAMPLES["heldout"] // len(SKILLS))
        colours = Counter(
            sample.truth["objects"][0]["colour"]
            for sample in samples["heldout", task]
            if sample.truth["skill"] == "colours"
        )
        assert max(colours.values()) <= 2 * min(colours.values()) and set(colours) == set(CONFIG.tints)


def test_objects_are_on_the_grid_and_do_not_overlap(samples):
    for sample in by_split(samples, "train"):
        for one in sample.truth["objects"]:
            assert one["x"] in CONFIG.cells_px and one["y"] in CONFIG.cells_px
        for a, b in combinations(sample.truth["objects"], 2):
            assert max(abs(a["x"] - b["x"]), abs(a["y"] - b["y"])) >= SPRITE, sample.truth


def test_pictures_match_the_truth(samples):
    sheet = SpriteSheet(CONFIG)
    for sample in samples["train", Task.GENERATION][:50]:
        with Image.open(io.BytesIO(sample.image)) as image:
            objects = [Placed(**one) for one in sample.truth["objects"]]
            assert np.array_equal(np.asarray(image), sheet.paint(sample.truth["background"], objects))


def test_pictures_fulfil_their_own_requirements(samples):
    for sample in by_split(samples, "train") + by_split(samples, "heldout"):
        truth, wanted = sample.truth, sample.truth["requirements"]
        found = Counter((one["kind"], one["colour"]) for one in truth["objects"])
        assert found == {(g["kind"], g["colour"] or "natural"): g["count"] for g in wanted["groups"]}
        assert truth["background"] == (wanted["background"] or "white")
        if wanted["relation"]:
            first, second = (
                [one for one in truth["objects"] if one["kind"] == group["kind"]] for group in wanted["groups"]
            )
            axis, sign = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[
                wanted["relation"]
            ]
            assert all(sign * (b[axis] - a[axis]) >= SPRITE for a in first for b in second), truth


def test_a_tested_relation_is_the_only_one(samples):
    for sample in by_split(samples, "heldout"):
        if sample.truth["skill"] == "position":
            assert len(combinations_in(sample.truth)["position"]) == 1


def test_any_process_makes_the_same_sample(samples):
    again = SceneSource(CONFIG, seed=5)
    for (split, task), made in samples.items():
        for number in (17, 3):
            assert again.sample(split, task, number).to_members() == made[number].to_members()
    other = SceneSource(CONFIG, seed=6).sample("train", Task.GENERATION, 3)
    assert other.to_members() != samples["train", Task.GENERATION][3].to_members()


def test_the_recipe_depends_on_its_own_split_only():
    larger = SceneSource(CONFIG.model_copy(update={"num_heldout_per_task": 999}), seed=5)
    source = SceneSource(CONFIG, seed=5)
    assert larger.recipe("train") == source.recipe("train")
    assert larger.recipe("heldout") != source.recipe("heldout")
    assert SceneSource(CONFIG, seed=6).recipe("train") != source.recipe("train")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"max_count": 5}, "max_count=5: only 4 sprites"),
        ({"position_step_px": 16, "canvas_px": 72, "max_count": 5}, "max_count=5: only 4 sprites"),
        ({"max_count": 1}, "max_count"),
        ({"tints": 3}, "num_tints"),
    ],
)
def test_impossible_scenes_are_refused(values, fault):
    with pytest.raises(ConfigError, match=fault):
        ScenesConfig.from_mapping(values, origin="recipe.yaml")


def test_a_config_without_a_scene_for_a_held_out_combination_names_its_values(monkeypatch):
    monkeypatch.setattr(scene_sampling, "_MOST_TRIES", 20)
    trained = ("single_object", CONFIG.kind_names[0], WHITE)  # so no scene has it and is held out
    with pytest.raises(ConfigError, match=r"prepare.scenes: .* single_object, .* num_kinds=8, .* Lower held_out_share"):
        SceneSampler(CONFIG, 0).heldout(Random(0), trained, even_backgrounds=True)


@pytest.mark.parametrize(
    "values",
    [
        {"num_kinds": 4, "num_tints": 2, "num_backgrounds": 2, "max_count": 2, "held_out_share": 0.05},
        {"num_kinds": 4, "num_tints": 2, "num_backgrounds": 2, "max_count": 2, "held_out_share": 0.45},
        {"num_kinds": 6, "canvas_px": 96, "sprite_px": 24, "max_count": 9},
        {"num_kinds": 5, "canvas_px": 48, "sprite_px": 24, "num_turns": 1},
    ],
)
def test_small_and_odd_configs_have_scenes_of_every_skill_in_both_splits(values):
    source = SceneSource(ScenesConfig(**values), seed=1)
    for task in Task:
        for number in range(60):
            source.sample("train", task, number)
            source.sample("heldout", task, number)
