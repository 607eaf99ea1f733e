"""Decodes image files: to the square uint8 arrays that training reads, or at their own size.

bytes of a PNG, JPEG or WebP -> header checked (image_header.py) -> RGB as viewers show it: turned by its EXIF
   orientation, transparent pixels blended with white, 16 bits reduced to 8, the first of several frames
-> decode_image: uint8 [size, size, 3]; understanding pads the whole image to a square, generation crops the middle
-> decode_whole: uint8 [height, width, 3]

This is the only place that decodes image files from outside. JPEG is decoded by libjpeg-turbo; other formats, and JPEG
in colour spaces that it does not convert, by the Pillow decoder of the format that the first bytes show. No other
decoder of Pillow can be reached.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image

from ufork.errors import SampleError
from ufork.vision.image_header import MAX_PIXELS, PILLOW_DECODERS, ImageHeader, read_image_header
from ufork.vocabulary import Task

_DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, AssertionError, LookupError, TypeError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""Exceptions that Pillow lets through for damaged files. Not all of Exception: a signal handler may raise as well."""

_PADDING_VALUE = 127
_WHITE = (255, 255, 255, 255)
_FLIPPED_AXES = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
"""Axes that an EXIF orientation mirrors, after exchanging rows and columns from 5 on."""


def decode_image(data: bytes, *, size_px: int, purpose: Task) -> np.ndarray:
    """Decodes an image file into uint8 [size_px, size_px, 3].

    Args:
        data: the file's bytes.
        size_px: side of the square.
        purpose: for understanding nothing is cut off: the long side is scaled to the square (bicubic) and the rest
            padded with grey 127. For generation nothing is padded: the short side is scaled and the middle cut out.

    Raises:
        SampleError: as `read_image_header`, or the file is damaged, or so narrow that it would be scaled up to more
            than `MAX_PIXELS`.
    """
    header = read_image_header(data)
    side_px = header.long_px if purpose == Task.UNDERSTANDING else header.short_px
    # libjpeg-turbo decodes at half the size (or less) faster than at full size
    height, width = (min(length, -(-length * size_px // side_px)) for length in (header.height_px, header.width_px))
    with _decoding_errors():
        pixels = _pixels(data, header, min_height=height, min_width=width)
    if pixels.shape[:2] == (size_px, size_px):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(pixels)
    return np.array(padded(image, size_px) if purpose == Task.UNDERSTANDING else _cropped(image, size_px))


def decode_whole(data: bytes) -> np.ndarray:
    """Decodes an image file at its own size into uint8 [height, width, 3].

    Raises:
        SampleError: as `read_image_header`, or the file is damaged.
    """
    header = read_image_header(data)
    with _decoding_errors():
        return np.ascontiguousarray(_pixels(data, header))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors stored pixels [height, width, ...] as their EXIF orientation, 1 to 8, says."""
    upright = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    return np.flip(upright, _FLIPPED_AXES.get(orientation, ()))


@contextmanager
def _decoding_errors() -> Iterator[None]:
    """Converts every exception that decoders raise for damaged files into a SampleError."""
    try:
        yield
    except _DECODER_ERRORS as error:
        raise SampleError("image cannot be decoded", detail=str(error) or type(error).__name__) from None


def _pixels(data: bytes, header: ImageHeader, *, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """RGB pixels [height, width, 3] as shown; most JPEGs are reduced to about the smallest size allowed, if any."""
    if header.format == "jpg" and simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray", "RGB"):
        if header.orientation > 4:
            min_height, min_width = min_width, min_height
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width)
    else:
        pixels = np.array(_pillow_image(data, header))
    return turned(pixels, header.orientation)


def _pillow_image(data: bytes, header: ImageHeader) -> Image.Image:
    """The image as stored, in RGB, transparent pixels blended with white."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=(PILLOW_DECODERS[header.format],))
    if image.size != header.stored_size:  # a second IHDR chunk, which would evade the limits
        width, height = header.stored_size
        raise ValueError(f"size {image.width} x {image.height}, {width} x {height} in its header")
    image.load()
    return in_rgb(image)


def in_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, transparent pixels blended with white."""
    if image.mode.startswith("I;16"):
        image = _with_eight_bits(image)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, _WHITE)
        ground.alpha_composite(image.convert("RGBA"))
        return ground.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _with_eight_bits(image: Image.Image) -> Image.Image:
    """The grey image of 16 bits with the upper 8; Pillow would make everything from 256 on white."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def padded(image: Image.Image, size_px: int) -> Image.Image:
    """The whole image, its long side scaled to `size_px`, in the middle of a grey square."""
    scaled = image.resize(_scaled_size(image.size, size_px, max(image.size)), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size_px, size_px), (_PADDING_VALUE,) * 3)
    square.paste(scaled, ((size_px - scaled.width) // 2, (size_px - scaled.height) // 2))
    return square


def _cropped(image: Image.Image, size_px: int) -> Image.Image:
    """The middle square of the image."""
    width, height = _scaled_size(image.size, size_px, min(image.size))
    if width * height > MAX_PIXELS:
        raise SampleError(f"image would be scaled to {width} x {height} pixels, the limit is {MAX_PIXELS}")
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size_px) // 2, (height - size_px) // 2
    return scaled.crop((left, top, left + size_px, top + size_px))


def _scaled_size(size: tuple[int, int], target_px: int, side_px: int) -> tuple[int, int]:
    """`size` scaled so that `side_px` becomes `target_px`; rounded down, as the release of UniFork does."""
    return max(1, size[0] * target_px // side_px), max(1, size[1] * target_px // side_px)
