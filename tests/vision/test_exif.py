"""EXIF orientation is applied as Pillow's `exif_transpose` does, in every format and wherever its size counts."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_prep.filtering.difference_hash import difference_hash
from ufork.vision.exif import exif_orientation
from ufork.vision.image_header import read_image_header
from ufork.vision.images import decode_image, decode_whole
from ufork.vocabulary import Task

OPTIONS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}
NAMES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def photo(form: str, orientation: int, *, order: str = "<", mode: str = "RGB") -> bytes:
    """An image of 64 x 48 px without any symmetry, with the orientation in its EXIF data."""
    corners = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(0, 0, 0), (255, 255, 0), (255, 0, 255)]], np.uint8)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker", orientation
    exif.endian = order
    stream = io.BytesIO()
    image = Image.fromarray(corners).resize((64, 48), Image.Resampling.BICUBIC).convert(mode)
    image.save(stream, form, exif=exif, **OPTIONS[form])
    return stream.getvalue()


@pytest.mark.parametrize("form", OPTIONS)
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_shown_upright(form, orientation):
    """F6: decoders, the header's sides and the hash of duplicates; 0 and 9 are no orientations."""
    data = photo(form, orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels = decode_whole(data).astype(int)
    assert np.abs(pixels - np.array(expected)).max() <= 2
    header = read_image_header(data)
    assert (header.width_px, header.height_px) == expected.size
    stream = io.BytesIO()
    expected.save(stream, "PNG")
    for purpose in Task:
        square = decode_image(data, size_px=16, purpose=purpose).astype(int)
        assert np.abs(square - decode_image(stream.getvalue(), size_px=16, purpose=purpose)).mean() < 3
    assert (difference_hash(data) ^ difference_hash(stream.getvalue())).bit_count() <= 3


@pytest.mark.parametrize("order", "<>")
def test_colour_spaces_that_pillow_decodes_are_turned_too(order):
    data = photo("JPEG", 6, order=order, mode="CMYK")
    assert decode_whole(data).shape == (64, 48, 3) and exif_orientation(data, "jpg") == 6


def test_exif_data_after_the_pixels_and_with_the_prefix_of_jpeg_are_found():
    data = photo("WEBP", 8)
    start = data.index(b"EXIF")
    length = int.from_bytes(data[start + 4 : start + 8], "little")
    chunk = b"EXIF" + (length + 6).to_bytes(4, "little") + b"Exif\0\0" + data[start + 8 :]
    assert exif_orientation(data[:start] + chunk, "webp") == 8
    png = photo("PNG", 3)
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4])
    assert exif_orientation(png[:start] + png[end:-12] + png[start:end] + png[-12:], "png") == 3


def test_a_picture_in_the_exif_data_is_not_taken_for_the_image():
    plain = photo("JPEG", 1)
    thumbnail = b"\xff\xe2" + (len(plain) + 2).to_bytes(2) + photo("JPEG", 6)[: len(plain)]
    assert exif_orientation(plain[:2] + thumbnail + plain[2:], "jpg") == 1


@settings(max_examples=100, deadline=None)
@given(form=st.sampled_from(list(OPTIONS)), at=st.integers(0, 10**6), bytes_=st.binary(max_size=4), cut=st.booleans())
def test_damaged_exif_data_are_no_error(form, at, bytes_, cut):
    data = bytearray(photo(form, 6))
    at %= len(data)
    data[at : len(data) if cut else at + len(bytes_)] = bytes_
    assert exif_orientation(bytes(data), NAMES[form]) in range(1, 9)


def test_any_number_of_segments_takes_little_time():
    exif_orientation(b"\xff\xd8" + b"\xff" * 10**7 + b"Exif\0\0", "jpg")
    exif_orientation(b"\xff\xd8" + b"\xff\xe0\0\2" * 10**6 + b"Exif\0\0", "jpg")
