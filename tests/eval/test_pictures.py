"""Images of samples are decoded as in training, and written as PNG."""

import io

import numpy as np
import pytest
from PIL import Image

from ufork.data.shards.sample import Sample
from ufork.errors import SampleError, StorageError
from ufork.eval.pictures import read_picture, write_picture
from ufork.vocabulary import Task


def sample(image: Image.Image, form: str) -> Sample:
    stream = io.BytesIO()
    image.save(stream, form)
    return Sample(id="a-1", task=Task.GENERATION, source="a", licence="", image=stream.getvalue(), image_format="png")


def test_an_image_keeps_its_size_and_transparent_pixels_are_white():
    pixels = read_picture(sample(Image.new("RGBA", (5, 4), (0, 0, 0, 0)), "PNG"))
    assert pixels.shape == (4, 5, 3) and (pixels == 255).all()


def test_formats_that_training_does_not_read_are_refused():
    with pytest.raises(SampleError, match="a-1: image is none of"):
        read_picture(sample(Image.new("RGB", (5, 4)), "TIFF"))


def test_a_picture_is_written_and_read_again(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    write_picture(pixels, tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), pixels)
    with pytest.raises(StorageError):
        write_picture(pixels, tmp_path / "new" / "a.png" / "b.png")
