"""Image files to the square uint8 arrays that a tokenizer reads.

bytes of a PNG, JPEG or WebP -> checked header -> RGB, transparency laid on white
-> understanding: the whole image, padded to a square; generation: the middle square
-> uint8 [size, size, 3]
"""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ufork.errors import SampleError
from ufork.vocabulary import Task

FORMATS = ("PNG", "JPEG", "WEBP")
"""What may be decoded; Pillow's other decoders are never reached."""

MAX_PIXELS = 64 * 2**20
"""Pixels of the largest image that is decoded, or made on the way by scaling a narrow one up."""

_JPEG_START = b"\xff\xd8\xff"
_PADDING_VALUE = 127
_WHITE = (255, 255, 255, 255)


def decode_image(data: bytes, *, size_px: int, purpose: Task) -> np.ndarray:
    """Decodes an image file into uint8 [size_px, size_px, 3].

    Args:
        data: the file's bytes.
        size_px: side of the square.
        purpose: for understanding nothing is cut off: the long side is scaled to the square (bicubic) and the rest
            padded with grey 127. For generation nothing is padded: the short side is scaled and the middle cut out.

    Raises:
        SampleError: not a PNG, JPEG or WebP file, damaged, or of more than `MAX_PIXELS` pixels.
    """
    try:
        pixels = _jpeg_pixels(data, size_px, purpose) if data.startswith(_JPEG_START) else None
        if pixels is not None and pixels.shape[:2] == (size_px, size_px):
            return pixels
        image = Image.fromarray(pixels) if pixels is not None else _opened(data)
        if image.size == (size_px, size_px):
            return np.array(image)
    except UnidentifiedImageError:
        raise SampleError(f"image: {len(data)} bytes that are none of {', '.join(FORMATS)}") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise SampleError(f"image: cannot be decoded ({error})") from None
    return np.array(_padded(image, size_px) if purpose == Task.UNDERSTANDING else _cropped(image, size_px))


def _jpeg_pixels(data: bytes, size_px: int, purpose: Task) -> np.ndarray | None:
    """RGB, already smaller where the square is: libjpeg-turbo halves for less than it takes to decode whole.

    None for colours that only Pillow converts.
    """
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours not in ("YCbCr", "Gray", "RGB"):
        return None
    _check_size((width, height))
    side = max(width, height) if purpose == Task.UNDERSTANDING else min(width, height)
    min_height, min_width = (min(length, -(-length * size_px // side)) for length in (height, width))
    return simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width)


def _opened(data: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(image.size)
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, _WHITE)
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")


def _padded(image: Image.Image, size_px: int) -> Image.Image:
    """The image in the middle of a grey square."""
    scaled = image.resize(_scaled_size(image.size, size_px, max(image.size)), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size_px, size_px), (_PADDING_VALUE,) * 3)
    square.paste(scaled, ((size_px - scaled.width) // 2, (size_px - scaled.height) // 2))
    return square


def _cropped(image: Image.Image, size_px: int) -> Image.Image:
    """The middle square of the image."""
    size = _scaled_size(image.size, size_px, min(image.size))
    _check_size(size)
    scaled = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (scaled.width - size_px) // 2, (scaled.height - size_px) // 2
    return scaled.crop((left, top, left + size_px, top + size_px))


def _scaled_size(size: tuple[int, int], target_px: int, side_px: int) -> tuple[int, int]:
    """`size` scaled so that `side_px` becomes `target_px`; rounded down, as the release of UniFork does."""
    return max(1, size[0] * target_px // side_px), max(1, size[1] * target_px // side_px)


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise SampleError(f"image: {size[0]} x {size[1]} pixels, at most {MAX_PIXELS} are decoded; make it smaller")
