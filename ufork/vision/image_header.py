"""Format, size and orientation of an image file, read without decoding it.

PNG: the IHDR chunk, always the first       JPEG: libjpeg-turbo reads the header       WebP: the first chunk
-> image_format: png, jpg or webp           -> read_image_header: ImageHeader, turned as the EXIF data say

This is the only place that recognises image formats and limits image sizes. Pillow would set up a decoder just to read
the size, which for WebP takes a hundred times as long (layouts: https://www.w3.org/TR/png-3/#11IHDR,
https://www.rfc-editor.org/rfc/rfc9649).
"""

import struct
from dataclasses import dataclass

import simplejpeg

from ufork.errors import SampleError
from ufork.vision.chunks import jpeg_segments
from ufork.vision.exif import exif_orientation

PILLOW_DECODERS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
"""Supported formats, as in a sample's `image_format`, with the names of Pillow's decoders for them."""

MAX_PIXELS = 64 * 2**20
"""Largest number of pixels of an image."""

MAX_SIDE_PX = 65_535
"""Longest side of an image: JPEG's own limit. Memory for resizing grows with the side as well as with the area."""

MAX_JPEG_SCANS = 100
"""Largest number of scans of a JPEG; a progressive one has about ten. Each takes the time of a pass over all pixels."""

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_JPEG_START = b"\xff\xd8\xff"
_WEBP_BYTES = 30
_14_BITS = 0x3FFF
_JPEG_SEQUENTIAL, _JPEG_SCAN = (0xC0, 0xC1), 0xDA


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """Format and size of one image file; width and height are those of the image as viewers show it."""

    format: str
    """Format, as in a sample's `image_format`: png, jpg or webp."""
    width_px: int
    height_px: int
    num_bytes: int
    orientation: int = 1
    """EXIF orientation, 1 to 8: how the stored pixels are turned and mirrored to be shown (`images.turned`)."""

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of the pixels in the file."""
        return (self.height_px, self.width_px) if self.orientation > 4 else (self.width_px, self.height_px)

    @property
    def short_px(self) -> int:
        """The shorter side."""
        return min(self.width_px, self.height_px)

    @property
    def long_px(self) -> int:
        """The longer side."""
        return max(self.width_px, self.height_px)

    @property
    def aspect(self) -> float:
        """Long side over short side."""
        return self.long_px / self.short_px


def image_format(data: bytes) -> str | None:
    """Returns png, jpg or webp as the first bytes of `data` say, or None for anything else."""
    if data.startswith(_JPEG_START):
        return "jpg"
    if data.startswith(_PNG_START[:8]):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return None


def read_image_header(data: bytes) -> ImageHeader:
    """Reads the header of an image file; the rest of the file is not checked.

    Raises:
        SampleError: the file is empty, of an unsupported format, has a damaged header, no pixels, more than
            `MAX_PIXELS`, a side longer than `MAX_SIDE_PX`, or more than `MAX_JPEG_SCANS`. Such files are counted by
            this message.
    """
    if not data:
        raise SampleError("image is an empty file")
    name = image_format(data)
    if name is None:
        raise SampleError(f"image is none of {', '.join(PILLOW_DECODERS.values())}")
    size = {"jpg": _jpeg_size, "png": _png_size, "webp": _webp_size}[name](data)
    if size is None or 0 in size:
        raise SampleError("image header is damaged")
    if size[0] * size[1] > MAX_PIXELS:
        raise SampleError(f"image of more than {MAX_PIXELS} pixels")
    if max(size) > MAX_SIDE_PX:
        raise SampleError(f"image with a side of more than {MAX_SIDE_PX} pixels")
    if name == "jpg" and _num_scans(data) > MAX_JPEG_SCANS:
        raise SampleError(f"JPEG of more than {MAX_JPEG_SCANS} scans")
    orientation = exif_orientation(data, name)
    width, height = size[::-1] if orientation > 4 else size
    return ImageHeader(format=name, width_px=width, height_px=height, num_bytes=len(data), orientation=orientation)


def _png_size(data: bytes) -> tuple[int, int] | None:
    if not data.startswith(_PNG_START) or len(data) < 24:
        return None
    return struct.unpack_from(">II", data, 16)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return width, height


def _num_scans(data: bytes) -> int:
    """Returns the number of scans of a JPEG; 1, without searching the file, if the first one holds all components."""
    num_components = b""
    for marker, start, _ in jpeg_segments(data):
        if marker in _JPEG_SEQUENTIAL:
            num_components = data[start + 5 : start + 6]
        elif marker == _JPEG_SCAN and num_components and data.startswith(num_components, start):
            return 1
    return data.count(b"\xff\xda")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < _WEBP_BYTES:
        return None
    chunk = data[12:16]
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & _14_BITS, height & _14_BITS
    if chunk == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & _14_BITS), 1 + (bits >> 14 & _14_BITS)
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    return None
