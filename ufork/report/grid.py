"""Several pictures as one grid, written in the format that the file's name says."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ufork.errors import ConfigError
from ufork.files import make_folder, whole_file

GAP_PX, GAP_COLOUR = 2, 127

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Extensions of picture files, with Pillow's names of their formats."""


QUALITY = 95
"""Quality of JPEG and WebP files, from 0 to 100."""


def check_writable(path: Path) -> str:
    """Returns Pillow's name of the format for the extension of `path`, before anything is drawn.

    Raises:
        ConfigError: the extension is none of FORMATS, or `path` is a folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"{path}: cannot write pictures of type {path.suffix!r}; end the name in {', '.join(FORMATS)}"
        )
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of a picture in it, such as {path / 'drawing.png'}")
    return FORMATS[path.suffix.lower()]


def grid_of(images: np.ndarray) -> np.ndarray:
    """Arranges `images` (uint8 [B, H, W, 3]) row by row in a grid that is as nearly square as B allows."""
    num_images, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(num_images))
    rows = math.ceil(num_images / columns)
    size = (rows * (height + GAP_PX) + GAP_PX, columns * (width + GAP_PX) + GAP_PX, 3)
    grid = np.full(size, GAP_COLOUR, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = row * (height + GAP_PX) + GAP_PX, column * (width + GAP_PX) + GAP_PX
        grid[top : top + height, left : left + width] = image
    return grid


def write_grid(images: np.ndarray, path: Path) -> None:
    """Writes `images` (uint8 [B, H, W, 3]) as one picture in the format that the extension of `path` says.

    Raises:
        ConfigError: as `check_writable`.
        StorageError: the file cannot be written.
    """
    form = check_writable(path)
    make_folder(path.parent, choose="another --out")
    with whole_file(path, choose="another --out") as file:
        Image.fromarray(grid_of(images)).save(file, format=form, quality=QUALITY)
