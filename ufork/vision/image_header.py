"""What an image file's first bytes tell: its format and size, of which nothing is decoded.

PNG: the IHDR chunk, which is always the first        JPEG: libjpeg-turbo reads the header        WebP: the first chunk
-> ImageHeader

Pillow would set up a decoder for it, which for WebP takes a hundred times as long as reading the few bytes here
(layouts: https://www.w3.org/TR/png-3/#11IHDR, https://www.rfc-editor.org/rfc/rfc9649).
"""

import struct
from dataclasses import dataclass

import simplejpeg

from ufork.errors import SampleError
from ufork.vision.images import FORMATS, MAX_PIXELS

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_JPEG_START = b"\xff\xd8\xff"
_WEBP_BYTES = 30
_14_BITS = 0x3FFF


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """Of one image file."""

    format: str
    """As a sample's `image_format`: png, jpg or webp."""
    width_px: int
    height_px: int
    num_bytes: int

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


def read_image_header(data: bytes) -> ImageHeader:
    """Reads the header of an image file; whether the rest is sound is not looked at.

    Raises:
        SampleError: in words under which such files are counted together: the file is empty, of another format, has a
            damaged header, no pixels, or more than `MAX_PIXELS`.
    """
    if not data:
        raise SampleError("image is an empty file")
    if data.startswith(_JPEG_START):
        name, size = "jpg", _jpeg_size(data)
    elif data.startswith(_PNG_START[:8]):
        name, size = "png", _png_size(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        name, size = "webp", _webp_size(data)
    else:
        raise SampleError(f"image is none of {', '.join(FORMATS)}")
    if size is None or 0 in size:
        raise SampleError("image header is damaged")
    if size[0] * size[1] > MAX_PIXELS:
        raise SampleError(f"image of more than {MAX_PIXELS} pixels")
    return ImageHeader(format=name, width_px=size[0], height_px=size[1], num_bytes=len(data))


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
