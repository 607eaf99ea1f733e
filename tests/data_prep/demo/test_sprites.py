"""Sprites are distinguishable, and scenes are painted from them."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.demo.sprites import (
    BACKGROUNDS,
    KINDS,
    NATURAL,
    TINTS,
    WHITE,
    Placed,
    SpriteConfig,
    SpriteSheet,
    encode_png,
)
from ufork.errors import ConfigError

CONFIG = SpriteConfig(num_kinds=len(KINDS), num_tints=len(TINTS), num_backgrounds=len(BACKGROUNDS))
SHEET = SpriteSheet(CONFIG)


def hue_and_saturation(rgb: np.ndarray) -> np.ndarray:
    """Returns a colour without its brightness, which a tint determines in every pixel that is not black."""
    return rgb / np.maximum(np.linalg.norm(rgb, axis=-1, keepdims=True), 1)


@pytest.mark.parametrize("tint", TINTS)
@pytest.mark.parametrize("kind", CONFIG.kind_names)
def test_a_tinted_sprite_is_nearer_its_tint_than_any_other(kind, tint):
    pixels = SHEET.sprite(kind, tint, WHITE).reshape(-1, 3).astype(float)
    solid = pixels[pixels.min(axis=1) < 140]
    assert len(solid) > 60
    names = list(TINTS)
    wanted = hue_and_saturation(np.array([TINTS[name] for name in names], float))
    distances = np.linalg.norm(hue_and_saturation(solid)[:, None] - wanted[None], axis=-1)
    votes = np.bincount(distances.argmin(axis=1), minlength=len(names))
    assert names[votes.argmax()] == tint
    assert votes.max() > 0.7 * votes.sum()


def test_no_two_sprites_look_alike():
    looks = {
        (kind, colour): SHEET.sprite(kind, colour, WHITE).astype(float)
        for kind in CONFIG.kind_names
        for colour in (NATURAL, *CONFIG.tints)
    }
    names = list(looks)
    flat = np.stack([looks[name].ravel() for name in names])
    difference = np.abs(flat[:, None] - flat[None]).mean(axis=-1)
    np.fill_diagonal(difference, np.inf)
    closest = np.unravel_index(difference.argmin(), difference.shape)
    assert difference.min() > 10, (names[closest[0]], names[closest[1]])


def test_sprites_are_painted_where_placed_and_background_elsewhere():
    pixels = SHEET.paint("blue", [Placed("dog", "red", 8, 40), Placed("cat", NATURAL, 40, 0)])
    assert np.array_equal(pixels[40:64, 8:32], SHEET.sprite("dog", "red", "blue"))
    assert np.array_equal(pixels[0:24, 40:64], SHEET.sprite("cat", NATURAL, "blue"))
    pixels[40:64, 8:32] = pixels[0:24, 40:64] = BACKGROUNDS["blue"]
    assert (pixels == BACKGROUNDS["blue"]).all()


def test_the_png_contains_exactly_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"num_kinds": 3}, "num_kinds"),
        ({"num_kinds": 99}, "num_kinds"),
        ({"sprite_px": 40}, "two sprites of 40 px do not fit into canvas_px=64"),
        ({"position_step_px": 48}, "position_step_px=48"),
        ({"sprite_pix": 24}, "sprite_px"),
    ],
)
def test_impossible_sprites_are_refused(values, fault):
    with pytest.raises(ConfigError, match=fault):
        SpriteConfig.from_mapping(values, origin="recipe.yaml")
