import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ufork.errors import StorageError
from ufork.report.grid import GAP_PX, grid_of, write_grid


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))
def test_every_picture_is_in_the_grid_whole_and_in_order(num_images, height, width):
    images = np.stack([np.full((height, width, 3), number, np.uint8) for number in range(num_images)])
    grid = grid_of(images)
    columns = (grid.shape[1] - GAP_PX) // (width + GAP_PX)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = row * (height + GAP_PX) + GAP_PX, column * (width + GAP_PX) + GAP_PX
        assert (grid[top : top + height, left : left + width] == image).all()


def test_grid_is_written_into_a_folder_that_is_made(tmp_path):
    write_grid(np.zeros((2, 4, 4, 3), np.uint8), tmp_path / "new" / "grid.png")
    assert Image.open(tmp_path / "new" / "grid.png").size == (2 * (4 + GAP_PX) + GAP_PX, 4 + 2 * GAP_PX)


def test_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file: cannot be written.*choose another --out"):
        write_grid(np.zeros((1, 4, 4, 3), np.uint8), tmp_path / "file" / "grid.png")
