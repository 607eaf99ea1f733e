"""The detector finds what renders show, refuses unusable renders, and is saved and loaded."""

import json
import shutil

import numpy as np
import pytest

from tests.eval.scenes import shape_scenes
from tests.eval.scenes.shape_scenes import SMALL_DETECTOR
from ufork.errors import CheckpointError, SampleError, ShardError
from ufork.eval.scenes.detector import CELL_PX, Detector
from ufork.eval.scenes.detector_fit import detector_for, fit_detector
from ufork.eval.scenes.skills import Detection


@pytest.fixture(scope="module")
def heldout():
    samples = shape_scenes.make_samples(120, seed=7)
    return [sample.truth for sample in samples], np.stack([shape_scenes.render(sample.truth) for sample in samples])


def agreement(detector, truths, images):
    found = detector.detect(images)
    return np.mean([one.same_as(Detection.from_truth(truth)) for one, truth in zip(found, truths, strict=True)])


def test_the_objects_of_real_renders_are_detected(detector, heldout):
    assert agreement(detector, *heldout) >= 0.95


def test_objects_are_detected_under_noise(detector, heldout):
    truths, images = heldout
    noise = np.random.default_rng(0).normal(0, 10, images.shape)
    assert agreement(detector, truths, (images + noise).clip(0, 255).astype(np.uint8)) >= 0.9


def test_fragments_are_no_objects(detector, heldout):
    _, images = heldout
    cells = shape_scenes.CANVAS_PX // CELL_PX
    tiles = images.reshape(-1, cells, CELL_PX, cells, CELL_PX, 3).swapaxes(2, 3).reshape(len(images), -1, 8, 8, 3)
    tiles = np.random.default_rng(0).permuted(tiles, axis=1)
    shuffled = tiles.reshape(-1, cells, cells, CELL_PX, CELL_PX, 3).swapaxes(2, 3).reshape(images.shape)
    objects = sum(len(found.objects) for found in detector.detect(shuffled))
    assert objects <= 0.1 * sum(len(found.objects) for found in detector.detect(images))


def test_objects_are_sorted_by_confidence_and_spaced_as_in_the_renders(detector, heldout):
    for found in detector.detect(heldout[1]):
        confidences = [item.confidence for item in found.objects]
        assert confidences == sorted(confidences, reverse=True)
    assert detector.words.spacing_cells == shape_scenes.SPRITE_PX // CELL_PX


def test_the_vocabulary_is_that_of_the_truth(detector):
    assert detector.words.kinds == shape_scenes.KINDS
    assert set(detector.words.colours) == {"natural", *shape_scenes.TINTS}
    assert set(detector.words.backgrounds) == set(shape_scenes.BACKGROUNDS)


def test_a_saved_detector_is_loaded_unchanged(detector, detector_folder, heldout):
    loaded = Detector.load(detector_folder)
    assert loaded.words == detector.words
    assert loaded.detect(heldout[1]) == detector.detect(heldout[1])
    np.testing.assert_array_equal(loaded.features(heldout[1]), detector.features(heldout[1]))


def test_the_detector_is_fitted_again_only_for_other_renders_seed_or_config(sources, detector_folder, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("fitted again")

    monkeypatch.setattr("ufork.eval.scenes.detector_fit.fit_detector", refuse)
    detector_for(sources / "train", SMALL_DETECTOR, folder=detector_folder, seed=3)
    named = SMALL_DETECTOR.model_copy(update={"seed": 3})
    detector_for(sources / "train", named, folder=detector_folder, seed=3)
    for folder, seed in (("train", 4), ("heldout", 3)):
        with pytest.raises(AssertionError, match="fitted again"):
            detector_for(sources / folder, SMALL_DETECTOR, folder=detector_folder, seed=seed)


def test_fit_is_the_same_for_the_same_seed():
    config = SMALL_DETECTOR.model_copy(update={"steps": 3})
    samples = shape_scenes.make_samples(24, seed=0)
    images = np.stack([shape_scenes.render(sample.truth) for sample in samples])
    first, again, other = (fit_detector(samples, config, seed=seed).features(images) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_damaged_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Detector.load(tmp_path)
    (tmp_path / "words.json").write_text("{}")
    with pytest.raises(CheckpointError, match="remove the folder to fit it again"):
        Detector.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"presence_threshold": -1},  # of which the search for objects never ends
        {"presence_threshold": "0.5"},
        {"spacing_cells": 10**9},
        {"image_px": 2**40},
        {"image_px": 12},
        {"kinds": []},
        {"colours": "red"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_words_out_of_range_are_damage(detector_folder, tmp_path, change):
    """Found by the fuzz suite."""
    folder = shutil.copytree(detector_folder, tmp_path / "detector")
    words = json.loads((folder / "words.json").read_text())
    (folder / "words.json").write_text(json.dumps(words | change))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        Detector.load(folder)


def test_other_size_is_refused(detector):
    with pytest.raises(CheckpointError, match="32x32 px.*64x64 px"):
        detector.detect(np.zeros((1, 32, 32, 3), np.uint8))


def test_unusable_renders_are_named():
    with pytest.raises(ShardError, match="no sample"):
        fit_detector([], SMALL_DETECTOR, seed=0)
    sample = shape_scenes.make_samples(1, seed=0)[0]
    broken = type(sample)(**{**vars(sample), "image": b"not a picture"})
    with pytest.raises(SampleError, match=sample.id):
        fit_detector([sample, broken], SMALL_DETECTOR, seed=0)
