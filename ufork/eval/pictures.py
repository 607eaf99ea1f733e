"""Pictures in and out of an evaluation: a sample's image as an array, an array as a PNG file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ufork.data.shards.sample import Sample
from ufork.errors import SampleError
from ufork.files import make_folder, whole_file
from ufork.vision.images import decode_whole


def read_picture(sample: Sample) -> NDArray[np.uint8]:
    """The sample's image as it is, [height, width, 3].

    Raises:
        SampleError: the sample has no image, or it cannot be decoded.
    """
    if sample.image is None:
        raise SampleError(f"{sample.id}: has no image; evaluation needs the shards with images, not those with codes")
    try:
        return decode_whole(sample.image)
    except SampleError as error:
        raise SampleError(f"{sample.id}: {error}") from None


def write_picture(image_HW3: NDArray[np.uint8], path: Path) -> None:
    """Writes a PNG; its folder is made.

    Raises:
        StorageError: the file cannot be written.
    """
    make_folder(path.parent)
    with whole_file(path) as file:
        Image.fromarray(image_HW3).save(file, "PNG")
