"""Several pictures as one."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ufork.files import make_folder, whole_file

GAP_PX, GAP_COLOUR = 2, 127


def grid_of(images: np.ndarray) -> np.ndarray:
    """`images` (uint8 [B, H, W, 3]) beside and below each other, row by row, as nearly square as B allows."""
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
    """Writes `images` (uint8 [B, H, W, 3]) as one PNG.

    Raises:
        StorageError: the file cannot be written.
    """
    make_folder(path.parent, choose="another --out")
    with whole_file(path, choose="another --out") as file:
        Image.fromarray(grid_of(images)).save(file, format="PNG")
