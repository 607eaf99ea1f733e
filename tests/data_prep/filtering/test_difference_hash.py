"""The difference hash: near for copies of a picture, far for others, NO_PICTURE for anything else."""

import io
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.filtering.difference_hash import NO_PICTURE, difference_hash
from tests.vision.test_image_header import SAVED, png_header, saved


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).convert(mode)


def distance(one: bytes, other: bytes) -> int:
    return (difference_hash(one) ^ difference_hash(other)).bit_count()


def test_a_bit_is_set_where_the_right_pixel_is_brighter():
    pixels = np.zeros((8, 9), np.uint8)
    pixels[0, 1] = 200  # brighter than its left neighbour, and the next is darker again
    pixels[7, 8] = 200
    assert difference_hash(encoded(Image.fromarray(pixels))) == 1 << 63 | 1


@pytest.mark.parametrize(
    ("copy", "bits"),
    [
        (encoded(picture(1).resize((640, 480))), 1),
        (encoded(picture(1).resize((100, 75))), 1),
        (encoded(picture(1), "JPEG", quality=90), 1),
        (encoded(picture(1), "JPEG", quality=40), 2),
        (encoded(picture(1, "L"), "JPEG"), 1),
        (encoded(picture(1, "CMYK"), "JPEG"), 1),
        (encoded(picture(1), "WEBP", quality=80), 1),
        (encoded(picture(1, "RGBA"), "WEBP", lossless=True), 0),
    ],
    ids=["larger", "smaller", "jpeg", "poor jpeg", "grey jpeg", "cmyk jpeg", "webp", "opaque"],
)
def test_hashes_of_copies_are_close(copy, bits):
    assert distance(encoded(picture(1)), copy) <= bits


def test_hashes_of_other_pictures_are_far_apart():
    hashes = [difference_hash(encoded(picture(seed))) for seed in range(12)]
    assert min((one ^ other).bit_count() for one, other in combinations(hashes, 2)) > 12


def test_transparent_pixels_are_white():
    image = picture(2, "RGBA")
    image.putalpha(0)
    assert difference_hash(encoded(image)) == NO_PICTURE
    image.putalpha(255)
    assert difference_hash(encoded(image)) != NO_PICTURE


@pytest.mark.parametrize("kind", SAVED)
def test_a_damaged_file_is_no_picture(kind):
    assert difference_hash(saved(kind)) != NO_PICTURE
    assert difference_hash(saved(kind)[:60]) == NO_PICTURE


def test_a_plain_picture_and_a_huge_one_are_no_picture():
    assert difference_hash(encoded(Image.new("RGB", (50, 50), "red"))) == NO_PICTURE
    assert difference_hash(png_header(100_000, 100_000)) == NO_PICTURE


@given(st.binary(max_size=200))
def test_other_bytes_are_no_picture(data):
    assert difference_hash(data) == NO_PICTURE
