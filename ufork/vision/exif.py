"""How the camera was held, from the EXIF data of an image file.

JPEG: a segment before the first scan     PNG, WebP: a chunk anywhere     -> a TIFF header -> its field 0x0112: 1 to 8

Defined by CIPA DC-008 (Exif), tag Orientation, and for PNG and WebP by the standards named in chunks.py.
"""

import struct

from ufork.vision.chunks import jpeg_segments, png_chunks, webp_chunks

_EXIF_START = b"Exif\0\0"
_JPEG_SEGMENT, _PNG_CHUNK, _WEBP_CHUNK = 0xE1, b"eXIf", b"EXIF"
_WEBP_FLAGS, _WEBP_HAS_EXIF = 20, 0x08
_ORIENTATION_TAG = 0x0112
_TIFF_NUMBERS = {3: "H", 4: "I"}
"""Types of a TIFF field that holds a whole number: SHORT and LONG."""


def exif_orientation(data: bytes, image_format: str) -> int:
    """Returns the orientation, 1 to 8, of a file of the format png, jpg or webp; 1 if it has none, or a damaged one.

    1 is shown as it is stored; `images.turned` defines the others.
    """
    return _read_orientation({"jpg": _jpeg_exif, "png": _png_exif, "webp": _webp_exif}[image_format](data))


def _jpeg_exif(data: bytes) -> bytes:
    for marker, start, end in jpeg_segments(data):
        if marker == _JPEG_SEGMENT and data.startswith(_EXIF_START, start):
            return data[start:end]
    return b""


def _png_exif(data: bytes) -> bytes:
    return next((data[start:end] for kind, start, end in png_chunks(data) if kind == _PNG_CHUNK), b"")


def _webp_exif(data: bytes) -> bytes:
    if len(data) <= _WEBP_FLAGS or not data[_WEBP_FLAGS] & _WEBP_HAS_EXIF:  # in files without flags: any bits
        return b""
    return next((data[start:end] for kind, start, end in webp_chunks(data) if kind == _WEBP_CHUNK), b"")


def _read_orientation(exif: bytes) -> int:
    """Returns the orientation that EXIF data state; 1 if they state none or are damaged."""
    tiff = exif.removeprefix(_EXIF_START)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_fields,) = struct.unpack_from(f"{order}H", tiff, start)
        for field in range(start + 2, start + 2 + 12 * num_fields, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, field)
            if tag == _ORIENTATION_TAG and kind in _TIFF_NUMBERS:
                (value,) = struct.unpack_from(order + _TIFF_NUMBERS[kind], tiff, field + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
