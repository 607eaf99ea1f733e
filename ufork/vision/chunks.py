"""The parts that image files consist of: their kinds, and where their contents are.

JPEG: segments up to the first scan     PNG, WebP: chunks     -> (kind, start, end) of each, without decoding anything

Layouts: ITU-T T.81 annex B, https://www.w3.org/TR/png-3/#5DataRep, https://www.rfc-editor.org/rfc/rfc9649.
"""

from collections.abc import Iterator

_MAX_PARTS = 2**16
"""Parts that are looked at. Files of honest origin have far fewer; others could take seconds."""
_JPEG_FILL, _JPEG_SCAN = 0xFF, 0xDA


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of the contents of the segments before the first scan, and of that scan's header."""
    position = 2
    for _ in range(_MAX_PARTS):
        if position + 4 > len(data) or data[position] != _JPEG_FILL:
            return
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if marker == _JPEG_FILL:  # any number of these bytes may precede a marker
            position += 1
            continue
        yield marker, position + 4, position + 2 + length
        if marker == _JPEG_SCAN:
            return
        position += 2 + length


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields type, start and end of the contents of every chunk."""
    position = 8
    for _ in range(_MAX_PARTS):
        if position + 8 > len(data):
            return
        start = position + 8
        end = start + int.from_bytes(data[position : position + 4])
        yield data[position + 4 : start], start, end
        position = end + 4


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields type, start and end of the contents of every chunk."""
    position = 12
    for _ in range(_MAX_PARTS):
        if position + 8 > len(data):
            return
        start = position + 8
        end = start + int.from_bytes(data[position + 4 : start], "little")
        yield data[position : position + 4], start, end
        position = end + end % 2
