"""Image files that a table contains as text, in base64 (RFC 4648) or a `data:` URL of it (RFC 2397)."""

import base64

from data_prep.inputs.files import TOO_LARGE
from ufork.errors import SampleError

_URL_START = "data:image/"
_STARTS = (_URL_START, "/9j/", "iVBORw0KGgo", "UklGR")
"""First characters of such texts: those of JPEG, PNG and WebP files in base64."""


def is_base64_image(text: str) -> bool:
    """Whether a text is an image file rather than a path; decided by its first characters."""
    return text.startswith(_STARTS)


def base64_image(text: str, *, max_bytes: int, where: str) -> bytes:
    """Returns the image file that a text contains.

    Args:
        text: what `is_base64_image` accepts.
        max_bytes: size of the largest image that is accepted.
        where: name of the entry in errors.

    Raises:
        SampleError: the image is too large, or the text is damaged.
    """
    encoded = text.partition(",")[2] if text.startswith(_URL_START) else text
    if len(encoded) > max_bytes * 4 / 3:
        raise SampleError(TOO_LARGE, detail=f"{len(encoded)} characters", sample=where)
    try:
        return base64.b64decode(encoded)
    except ValueError as error:
        raise SampleError("image whose base64 is damaged", detail=str(error), sample=where) from None
