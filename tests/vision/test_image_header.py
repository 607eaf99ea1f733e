"""Headers of image files give the same size as Pillow, or a reason."""

import io
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ufork.errors import SampleError
from ufork.vision.image_header import (
    MAX_JPEG_SCANS,
    MAX_PIXELS,
    MAX_SIDE_PX,
    ImageHeader,
    image_format,
    read_image_header,
)

SAVED = {
    "png": ("PNG", "RGB", {}),
    "png of a palette": ("PNG", "P", {}),
    "png of two colours": ("PNG", "1", {}),
    "png of several frames": ("PNG", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}),
    "jpg": ("JPEG", "RGB", {}),
    "jpg in grey": ("JPEG", "L", {}),
    "jpg in inks": ("JPEG", "CMYK", {}),
    "jpg, progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpg after much else": ("JPEG", "RGB", {"exif": b"Exif\0\0" + bytes(60_000)}),
    "webp": ("WEBP", "RGB", {}),
    "webp, lossless": ("WEBP", "RGB", {"lossless": True}),
    "webp, transparent": ("WEBP", "RGBA", {}),
    "webp of several frames": ("WEBP", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]}),
}


def saved(kind: str, width: int = 40, height: int = 30) -> bytes:
    form, mode, options = SAVED[kind]
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height))
    if "append_images" in options:
        options = {**options, "append_images": [frame.resize(image.size) for frame in options["append_images"]]}
    if mode == "RGBA":
        image.putalpha(99)
    stream = io.BytesIO()
    image.convert(mode).save(stream, form, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0) + bytes(20)


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + size


@settings(max_examples=60)
@given(kind=st.sampled_from(list(SAVED)), width=st.integers(1, 700), height=st.integers(1, 90))
def test_format_and_size_are_those_of_the_saved_image(kind, width, height):
    data = saved(kind, width, height)
    name = kind.split()[0].rstrip(",")
    assert read_image_header(data) == ImageHeader(format=name, width_px=width, height_px=height, num_bytes=len(data))


def test_sides_and_aspect():
    header = ImageHeader(format="png", width_px=30, height_px=120, num_bytes=1)
    assert (header.short_px, header.long_px, header.aspect) == (30, 120, 4.0)


@pytest.mark.parametrize("kind", SAVED)
def test_the_format_is_recognised_by_the_first_bytes(kind):
    assert image_format(saved(kind)[:12]) == kind.split()[0].rstrip(",")


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"RIFF0000WAVE", b"II*\0", b"%!PS-Adobe-3.0 EPSF-3.0", b"\xff\xd8"])
def test_no_other_format_is_recognised(data):
    assert image_format(data) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image is an empty file"),
        (b"GIF89a" + bytes(40), "image is none of JPEG, PNG, WEBP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image is none of JPEG, PNG, WEBP"),
        (png_header(0, 5), "image header is damaged"),
        (saved("png")[:20], "image header is damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "image header is damaged"),
        (saved("jpg")[:30], "image header is damaged"),
        (b"\xff\xd8\xff", "image header is damaged"),
        (saved("webp")[:25], "image header is damaged"),
        (b"RIFF\0\0\0\0WEBPVP8 " + bytes(40), "image header is damaged"),
        (png_header(100_000, 100_000), f"image of more than {MAX_PIXELS} pixels"),
        (png_header(2**32 - 1, 2**32 - 1), f"image of more than {MAX_PIXELS} pixels"),
        (webp_header(2**24, 2**24), f"image of more than {MAX_PIXELS} pixels"),
        (png_header(MAX_PIXELS, 1), f"image with a side of more than {MAX_SIDE_PX} pixels"),
        (png_header(1, MAX_SIDE_PX + 1), f"image with a side of more than {MAX_SIDE_PX} pixels"),
        (webp_header(2**24, 1), f"image with a side of more than {MAX_SIDE_PX} pixels"),
        (saved("jpg, progressive")[:-2] + b"\xff\xda" * MAX_JPEG_SCANS, f"JPEG of more than {MAX_JPEG_SCANS} scans"),
    ],
    ids=range(17),
)
def test_the_reason_is_named(data, reason):
    with pytest.raises(SampleError) as caught:
        read_image_header(data)
    assert str(caught.value) == reason


def test_a_header_that_claims_much_costs_nothing():
    bombs = [png_header(100_000, 100_000), webp_header(2**24, 2**24), png_header(8192, 8192)]
    tracemalloc.start()
    started = time.perf_counter()
    for bomb in bombs:
        try:
            read_image_header(bomb)
        except SampleError:
            pass
    assert tracemalloc.get_traced_memory()[1] < 100_000 and time.perf_counter() - started < 1
    tracemalloc.stop()
