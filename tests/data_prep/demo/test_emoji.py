"""Emoji: names, concept groups, and splits without leaks."""

import io
import shutil
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from data_prep.demo import emoji as emoji_module
from data_prep.demo.emoji import CATEGORIES, EmojiConfig, EmojiSource
from data_prep.demo.emoji_concepts import read_emoji
from data_prep.demo.sprites import KINDS
from data_prep.demo.twemoji import png_folder
from data_prep.inputs.skipped_input import SkippedInput
from ufork.vocabulary import Task

HEXCODES = {path.stem for path in png_folder().glob("*.png")}


@pytest.fixture(scope="module")
def listing():
    named, nameless = read_emoji(HEXCODES)
    return {one.hexcode.replace("-fe0f", ""): one for one in named}, nameless


@pytest.fixture(scope="module")
def source():
    return EmojiSource(EmojiConfig(), seed=0)


def test_nearly_all_images_have_a_name_and_the_rest_are_counted(listing, source):
    named, nameless = listing
    assert len(HEXCODES) == 4009
    assert len(named) + nameless == 4009 and nameless < 210
    assert source.skipped("train") == {"no name": nameless} and source.skipped("heldout") == {}
    total = sum(source.num_samples(split, Task.GENERATION) for split in ("train", "heldout"))
    assert total == len(named)


@pytest.mark.parametrize(
    ("hexcode", "name", "category"),
    [
        ("1f680", "rocket", "Travel & Places"),
        ("1f436", "dog face", "Animals & Nature"),
        ("1f469-1f3fd-200d-1f680", "woman astronaut with medium skin", "People & Body"),
        ("1f468-1f3fb-200d-2764-200d-1f468-1f3ff", "couple with heart: man, man with light and dark skin", None),
        ("1f46f-1f3fc-200d-2640", "women with bunny ears with medium-light skin", "People & Body"),
        ("31-20e3", "keycap 1", "Symbols"),
    ],
)
def test_names(listing, hexcode, name, category):
    assert listing[0][hexcode].name == name
    assert category in (None, listing[0][hexcode].category)


@pytest.mark.parametrize(
    "hexcodes",
    [
        ["1f9d1-200d-1f680", "1f469-200d-1f680", "1f468-1f3ff-200d-1f680"],
        ["1f550", "1f55b", "1f567"],
        ["1f6b6", "1f6b6-200d-2642", "1f6b6-1f3fe-200d-2640-200d-27a1"],
        ["2764", "1f499", "1f49a", "1f5a4"],
        ["1f7e5", "1f7e9"],
        ["1f34e", "1f34f"],
    ],
    ids=["astronauts", "clocks", "walkers", "hearts", "squares", "apples"],
)
def test_variants_of_a_concept_are_one_group(listing, hexcodes):
    assert len({listing[0][hexcode].group for hexcode in hexcodes}) == 1


def test_different_concepts_are_different_groups(listing):
    assert (
        len({listing[0][hexcode].group for hexcode in ("1f680", "1f436", "1f550", "1f1eb-1f1f7", "1f1ee-1f1f9")}) == 5
    )
    sizes = defaultdict(int)
    for one in listing[0].values():
        sizes[one.group] += 1
    assert len(sizes) > 1400 and max(sizes.values()) <= 104


def test_no_group_is_in_both_splits_and_each_split_has_all_categories(source):
    groups = {split: {one.group for one in source.emoji_of(split)} for split in ("train", "heldout")}
    assert not groups["train"] & groups["heldout"]
    share = len(groups["heldout"]) / len(groups["train"] | groups["heldout"])
    assert 0.07 < share < 0.13
    for split in groups:
        assert {one.category for one in source.emoji_of(split)} == set(CATEGORIES)


@pytest.mark.parametrize("seed", range(4))
def test_kinds_in_scenes_are_always_trained(seed):
    trained = EmojiSource(EmojiConfig(held_out_share=0.6), seed).emoji_of("train")
    assert {kind.hexcode for kind in KINDS} <= {one.hexcode for one in trained}


def test_limits_and_skin_tones():
    config = EmojiConfig(num_train_per_task=30, num_heldout_per_task=0, skin_tones=False)
    few = EmojiSource(config, seed=0)
    assert few.num_samples("train", Task.GENERATION) == 30 and few.num_samples("heldout", Task.GENERATION) == 0
    assert not [one for one in few.emoji_of("train") if "skin" in one.name]


def test_drawing_samples(source):
    sample = source.sample("train", Task.GENERATION, 3)
    assert sample.prompt == sample.truth["name"] and sample.turns == ()
    with Image.open(io.BytesIO(sample.image)) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (64, 64, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1


def test_choices_contain_the_answer_and_no_other_emoji_of_its_group(source, listing):
    groups = {one.name: one.group for one in listing[0].values()}
    for split in ("train", "heldout"):
        for number in range(60):
            sample = source.sample(split, Task.UNDERSTANDING, number)
            records = sample.truth["questions"]
            assert sorted(record["skill"] for record in records) == ["emoji_caption", "emoji_category", "emoji_name"]
            for (question, answer), record in zip(sample.turns, records, strict=True):
                if record["skill"] == "emoji_caption":
                    assert answer == sample.truth["name"] and record["choices"] == []
                    continue
                assert answer in record["choices"] and all(choice in question for choice in record["choices"])
                if record["skill"] == "emoji_name":
                    assert len({groups[choice] for choice in record["choices"]}) >= 2
                    wrong = [choice for choice in record["choices"] if choice != answer]
                    assert all(groups[choice] != sample.truth["group"] for choice in wrong)
            if split == "heldout":
                assert records[0]["choices"]


def test_wrong_choices_come_from_the_same_split(source):
    trained = {one.name for one in source.emoji_of("train")}
    for number in range(60):
        for record in source.sample("heldout", Task.UNDERSTANDING, number).truth["questions"]:
            if record["skill"] == "emoji_name":
                assert not trained & set(record["choices"])


def test_an_undecodable_image_is_skipped_with_its_reason(tmp_path, monkeypatch):
    shutil.copy(png_folder() / "1f680.png", tmp_path)
    (tmp_path / "1f436.png").write_bytes((png_folder() / "1f436.png").read_bytes()[:60])
    (tmp_path / "1f431.png").write_bytes(b"no image")
    monkeypatch.setattr(emoji_module, "png_folder", lambda: tmp_path)
    source = EmojiSource(EmojiConfig(), seed=0)
    assert source.num_samples("train", Task.GENERATION) == 3
    outcomes = []
    for number in range(3):
        try:
            outcomes.append(source.sample("train", Task.UNDERSTANDING, number).truth["name"])
        except SkippedInput as skip:
            outcomes.append(skip.reason)
    assert sorted(outcomes) == ["rocket", "undecodable image", "undecodable image"]
