"""Pictures of a server: the same pixels as elsewhere, unfinished ones seldom enough."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from pipelines.serve.pictures import MAX_UNFINISHED_SHARE, Pictures
from tests.infer.test_engine import with_tokenizers
from tests.pipelines.serve.served import png
from tests.tiny import DIMENSIONS, tiny_model
from ufork.errors import SampleError
from ufork.infer.requests import partial_image


@pytest.fixture(scope="module")
def codec():
    return with_tokenizers(tiny_model()).codec


CODES = np.random.default_rng(0).integers(0, DIMENSIONS.codebook_size, (4, DIMENSIONS.codes_per_position))


def test_pngs_have_the_decoded_pixels(codec):
    with Pictures(codec, max_image_pixels=1e6) as pictures:
        for file, codes in ((pictures.unfinished(CODES[:2]), CODES[:2]), (pictures.finished(CODES), CODES)):
            assert np.array_equal(Image.open(io.BytesIO(file)), partial_image(codec, codes))


def test_unfinished_pictures_take_a_bounded_share_of_time(codec, monkeypatch):
    with Pictures(codec, max_image_pixels=1e6) as pictures:
        slow = pictures._png
        monkeypatch.setattr(pictures, "_png", lambda codes: (time.sleep(0.02), slow(codes))[1])
        start, num_pictures = time.monotonic(), 0
        while (seconds := time.monotonic() - start) < 0.5:
            num_pictures += pictures.unfinished(CODES[:2]) is not None
            time.sleep(0.001)
        assert 1 <= num_pictures <= 1 + seconds * MAX_UNFINISHED_SHARE / 0.02
        assert pictures.finished(CODES)


def test_uploads_are_decoded_and_limited(codec):
    with Pictures(codec, max_image_pixels=40 * 40) as pictures:
        assert pictures.read_upload(png(40)).shape == (16, 16, 3)
        with pytest.raises(SampleError, match=r"0.0 million pixels, this server reads 0.0016 million"):
            pictures.read_upload(png(41, height_px=40))
        with pytest.raises(SampleError, match="image is none of"):
            pictures.read_upload(b"<svg onload='alert(1)'>")
