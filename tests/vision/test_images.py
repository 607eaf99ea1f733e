"""Decodes image files of every supported format and colour mode, or raises SampleError."""

import io
import struct
import tracemalloc
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.golden_files import golden
from ufork.errors import SampleError
from ufork.vision import images
from ufork.vision.images import decode_image, decode_whole
from ufork.vision.patches import from_bytes
from ufork.vocabulary import Task

UNDERSTANDING, GENERATION = Task.UNDERSTANDING, Task.GENERATION


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG with a valid header and hardly any data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("purpose", Task)
def test_an_image_of_the_right_size_is_unchanged(purpose):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(image), size_px=16, purpose=purpose), image)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size_px=st.integers(1, 40), purpose=st.sampled_from(Task))
def test_any_size_becomes_the_square_asked_for(width, height, size_px, purpose):
    image = decode_image(encoded(np.zeros((height, width, 3), np.uint8)), size_px=size_px, purpose=purpose)
    assert image.shape == (size_px, size_px, 3) and image.dtype == np.uint8
    if purpose == GENERATION:
        assert not image.any()
    else:  # black in the middle, grey around, the long side filled
        assert set(np.unique(image)) <= {0, 127}
        assert (image == 0).any(axis=(0, 2) if width >= height else (1, 2)).all()


def test_understanding_pads_and_generation_crops():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, :20], image[:, 20:40], image[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    padded = decode_image(encoded(image), size_px=60, purpose=UNDERSTANDING)
    np.testing.assert_array_equal(padded[20:40], image)
    assert (padded[:20] == 127).all() and (padded[40:] == 127).all()
    assert (decode_image(encoded(image), size_px=20, purpose=GENERATION) == (0, 255, 0)).all()


def test_the_padded_side_is_rounded_down_and_the_spare_pixel_goes_below():
    padded = decode_image(encoded(np.zeros((30, 44, 3), np.uint8)), size_px=32, purpose=UNDERSTANDING)
    assert np.flatnonzero((padded == 0).all(axis=(1, 2))).tolist() == list(range(5, 26))  # 21 of 21.8


@pytest.mark.parametrize("decode", [decode_whole, partial(decode_image, size_px=8, purpose=GENERATION)])
def test_transparent_pixels_are_white(decode):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((3, 3), (255, 0, 0, 255))
    pixels = decode(encoded(image))
    assert pixels[3, 3].tolist() == [255, 0, 0] and (pixels.reshape(-1, 3) == 255).all(axis=1).sum() == 63


def test_a_transparent_colour_is_white():
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    image.putpixel((3, 3), (0, 0, 9))
    pixels = decode_whole(encoded(image, transparency=(255, 0, 0)))
    assert pixels[3, 3].tolist() == [0, 0, 9] and (pixels.reshape(-1, 3) == 255).all(axis=1).sum() == 63


def test_grey_of_16_bits_keeps_its_upper_8():
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    assert (decode_whole(encoded(values)) == np.arange(256).reshape(16, 16, 1)).all()
    pixels = decode_whole(encoded(values, transparency=257 * 5))
    assert pixels[0, 5].tolist() == [255] * 3 and pixels[0, 6].tolist() == [6] * 3


@pytest.mark.parametrize(
    "mode, form",
    [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("RGBA", "WEBP")],
)
def test_other_modes_become_rgb(mode, form):
    assert decode_image(encoded(Image.new(mode, (9, 7)), form), size_px=8, purpose=GENERATION).shape == (8, 8, 3)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xff\xd8\xff")
def test_other_bytes_are_refused(data):
    with pytest.raises(SampleError, match=r"empty file|none of JPEG, PNG, WEBP|header is damaged|cannot be decoded"):
        decode_image(data, size_px=8, purpose=GENERATION)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_refused(form):
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), form)
    with pytest.raises(SampleError):
        decode_image(data[: len(data) // 2], size_px=64, purpose=GENERATION)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "ICO", "PPM", "EPS"])
@pytest.mark.parametrize("decode", [decode_whole, partial(decode_image, size_px=8, purpose=GENERATION)])
def test_formats_outside_the_list_never_reach_a_decoder(decode, form, monkeypatch):
    data = EPS if form == "EPS" else encoded(Image.new("RGB", (8, 8)), form)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(SampleError, match="none of JPEG, PNG, WEBP"):
        decode(data)


def test_only_the_decoder_of_the_format_is_tried(monkeypatch):
    tried, opened = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, formats: tried.append(formats) or opened(file, formats=formats))
    for form in ("PNG", "WEBP"):
        decode_whole(encoded(Image.new("RGB", (8, 8)), form))
    assert tried == [("PNG",), ("WEBP",)]


def test_a_very_long_side_is_refused_before_anything_is_allocated():
    tracemalloc.start()
    for size in ((67_000_000, 1), (1, 67_000_000)):
        with pytest.raises(SampleError, match="a side of more than 65535 pixels"):
            decode_image(png_claiming(*size), size_px=64, purpose=UNDERSTANDING)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_second_header_does_not_evade_the_limits():
    small, large = (png_claiming(side, 1) for side in (8, 80_000_000))
    with pytest.raises(SampleError, match="size 80000000 x 1, 8 x 1 in its header"):
        decode_image(small[:33] + large[8:], size_px=8, purpose=UNDERSTANDING)


def test_a_palette_image_without_its_palette_is_refused():
    data = encoded(Image.new("P", (8, 8)))
    start = data.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    with pytest.raises(SampleError, match="cannot be decoded .AssertionError"):
        decode_whole(data[:start] + data[end:])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_decoding_whole_keeps_the_size(form):
    image = np.full((30, 44, 3), (200, 10, 10), np.uint8)
    pixels = decode_whole(encoded(image, form))
    assert pixels.shape == image.shape and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - image).max() <= 12
    if form == "PNG":
        np.testing.assert_array_equal(pixels, image)


@settings(max_examples=200, deadline=None)
@given(form=st.sampled_from(["PNG", "WEBP", "JPEG"]), at=st.integers(0, 400), value=st.integers(0, 255))
@pytest.mark.filterwarnings("ignore:Invalid APNG")
def test_a_changed_byte_is_decoded_or_refused(form, at, value):
    data = bytearray(encoded(np.arange(300, dtype=np.uint8).reshape(10, 10, 3), form, save_all=form != "JPEG"))
    data[at % len(data)] = value
    try:
        decode_whole(bytes(data))
    except SampleError:
        pass


@pytest.mark.parametrize("side", [9000, 12_000, 60_000])  # under, between and over Pillow's own two bounds
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_image_is_refused_by_its_header(side):
    with pytest.raises(SampleError, match="pixels"):
        decode_image(png_claiming(side, side), size_px=8, purpose=UNDERSTANDING)


def test_a_narrow_image_is_not_scaled_up_beyond_bounds(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    narrow = encoded(np.zeros((1, 4000, 3), np.uint8))
    assert decode_image(narrow, size_px=64, purpose=UNDERSTANDING).shape == (64, 64, 3)
    with pytest.raises(SampleError, match="256000 x 64 pixels"):
        decode_image(narrow, size_px=64, purpose=GENERATION)


def photo(width, height, *, subsampling):
    """A JPEG of coarse structure: its bytes, and the image as Pillow decodes it."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.save(stream, "JPEG", quality=90, subsampling=subsampling)
    return stream.getvalue(), Image.open(stream).convert("RGB")


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_of_the_right_size_equals_pillows(subsampling):
    data, expected = photo(64, 64, subsampling=subsampling)
    pixels = decode_image(data, size_px=64, purpose=Task.GENERATION)
    assert np.abs(pixels.astype(int) - np.array(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("purpose", list(Task))
@pytest.mark.parametrize("size", [(640, 400), (300, 700), (65, 90)])
def test_a_jpeg_decoded_at_reduced_size_looks_the_same(purpose, size):
    data, whole = photo(*size, subsampling=2)
    stream = io.BytesIO()
    whole.save(stream, "PNG")  # which is always decoded whole
    expected = decode_image(stream.getvalue(), size_px=64, purpose=purpose)
    pixels = decode_image(data, size_px=64, purpose=purpose)
    assert np.abs(pixels.astype(int) - expected.astype(int)).mean() < 2


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_prepared_images_are_those_of_the_release(name):
    expected = golden("preprocess")
    data = encoded(expected[f"{name}_u8"].numpy())

    def prepared(size_px: int, purpose: Task, stride: int = 1) -> torch.Tensor:
        image = from_bytes(torch.from_numpy(decode_image(data, size_px=size_px, purpose=purpose)))
        return image.permute(2, 0, 1)[:, stride // 2 :: stride, stride // 2 :: stride]

    found = {
        "und32": prepared(32, UNDERSTANDING),
        "und384_off12_stride24": prepared(384, UNDERSTANDING, stride=24),
        "gen384_off12_stride24": prepared(384, GENERATION, stride=24),
    }
    for key, image in found.items():
        torch.testing.assert_close(image, expected[f"{name}_{key}"], rtol=0, atol=1e-6, msg=key)
