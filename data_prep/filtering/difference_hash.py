"""Perceptual hash of an image in 64 bits: nearly equal for copies that differ in size, format or quality.

An image file -> grey, transparent pixels blended with white -> 9 x 8 px
-> one bit for each of the 8 x 8 pairs of horizontal neighbours: 1 if the right pixel is brighter

This is dHash (Neal Krawetz, "Kind of Like That", 2013:
https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html). The package imagehash has it too, but
it decodes JPEGs at full size (600 images of 640 x 480 px per second and core, 3,000 here) and requires scipy.
"""

import numpy as np
import simplejpeg
from PIL import Image

from ufork.errors import SampleError
from ufork.vision.image_header import ImageHeader, read_image_header
from ufork.vision.images import decode_whole, turned

NO_PICTURE = 0
"""Hash of a missing or damaged image, or of one that never gets brighter to the right, such as an image of one colour.
It matches no other hash."""

_COLUMNS, _ROWS = 9, 8
_MIN_DETAIL = 4
"""A JPEG is decoded at no less than this multiple of the target size; otherwise its hash would change."""


def difference_hash(data: bytes) -> int:
    """Returns the hash of an image file, 0 to 2**64 - 1; NO_PICTURE if it cannot be decoded."""
    try:
        header = read_image_header(data)
        grey = _reduced_jpeg(data, header) if header.format == "jpg" else None
        grey = grey or Image.fromarray(decode_whole(data)).convert("L")
    except (SampleError, ValueError):
        return NO_PICTURE
    pixels = np.asarray(grey.resize((_COLUMNS, _ROWS), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes())


def _reduced_jpeg(data: bytes, header: ImageHeader) -> Image.Image | None:
    """Decodes a JPEG at down to an eighth of its size; None for colour spaces that only Pillow converts."""
    if simplejpeg.decode_jpeg_header(data)[2] not in ("YCbCr", "Gray"):
        return None
    side_px = _MIN_DETAIL * _COLUMNS
    stored = simplejpeg.decode_jpeg(data, "GRAY", min_height=side_px, min_width=side_px)[:, :, 0]
    return Image.fromarray(turned(stored, header.orientation))
