"""64 bits of what an image looks like: pictures that differ in size, format or quality have nearly the same.

An image file -> grey, transparency laid on white -> 9 x 8 px
-> a bit for each of the 8 x 8 pairs of neighbours in a row: does it get brighter to the right?

This is dHash (Neal Krawetz, "Kind of Like That", 2013:
https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html).
"""

import numpy as np
import simplejpeg
from PIL import Image

from ufork.errors import SampleError
from ufork.vision.image_header import read_image_header
from ufork.vision.images import decode_whole

NO_PICTURE = 0
"""The hash of what nothing can be said about: no image, a damaged one, or one that nowhere gets brighter to the right,
as those of one colour. It is like no other."""

_COLUMNS, _ROWS = 9, 8
_MIN_DETAIL = 4
"""A JPEG is decoded at no less than so many times the size that it is scaled to, or its hash would be another one."""


def difference_hash(data: bytes) -> int:
    """The hash of an image file, 0 to 2**64 - 1; NO_PICTURE where it cannot be decoded."""
    try:
        grey = _reduced_jpeg(data) if read_image_header(data).format == "jpg" else None
        grey = grey or Image.fromarray(decode_whole(data)).convert("L")
    except (SampleError, ValueError):
        return NO_PICTURE
    pixels = np.asarray(grey.resize((_COLUMNS, _ROWS), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes())


def _reduced_jpeg(data: bytes) -> Image.Image | None:
    """Decoded at down to an eighth of its size; None for colours that only Pillow converts."""
    if simplejpeg.decode_jpeg_header(data)[2] not in ("YCbCr", "Gray"):
        return None
    height, width = _MIN_DETAIL * _ROWS, _MIN_DETAIL * _COLUMNS
    return Image.fromarray(simplejpeg.decode_jpeg(data, "GRAY", min_height=height, min_width=width)[:, :, 0])
