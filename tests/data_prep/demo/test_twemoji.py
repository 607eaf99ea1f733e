"""The Twemoji package, and blending."""

import numpy as np
import pytest
from PIL import Image

from data_prep.demo import twemoji
from ufork.errors import StorageError


def test_a_missing_package_is_reported_with_the_remedy(monkeypatch):
    monkeypatch.setattr(twemoji, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match="pip install"):
        twemoji.png_folder.__wrapped__()


def test_transparent_pixels_become_background_and_add_no_colour(tmp_path):
    pixels = np.zeros((72, 72, 4), np.uint8)
    pixels[:, :36] = (200, 100, 50, 255)
    pixels[:, 36:] = (0, 255, 0, 0)  # transparent, with a bright colour that must not bleed
    Image.fromarray(pixels).save(tmp_path / "x.png")
    blended = twemoji.blend(twemoji.load_premultiplied(tmp_path / "x.png", 48), (255, 255, 255)).astype(int)
    assert (blended[:, :23] == (200, 100, 50)).all() and (blended[:, 25:] == 255).all()


def test_half_transparent_pixels_are_blended_evenly(tmp_path):
    Image.new("RGBA", (72, 72), (0, 0, 0, 128)).save(tmp_path / "x.png")
    blended = twemoji.blend(twemoji.load_premultiplied(tmp_path / "x.png", 24), (255, 255, 255))
    assert abs(blended.astype(int) - 127).max() <= 1
