"""Conversions from images to patches and back."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ufork.vision.patches import distinct, from_bytes, to_bytes, to_images, to_patches


@given(batch=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), patch_px=st.integers(1, 5))
def test_patches_are_squares_of_the_image_and_are_joined_to_it(batch, rows, columns, patch_px):
    shape = (batch, rows * patch_px, columns * patch_px, 3)
    images = torch.arange(int(np.prod(shape))).reshape(shape)
    patches = to_patches(images, patch_px)
    assert patches.shape == (batch, rows, columns, 3 * patch_px**2)
    bottom_right = images[-1, -patch_px:, -patch_px:]
    assert torch.equal(patches[-1, -1, -1], bottom_right.flatten())
    assert torch.equal(to_images(patches, patch_px), images)


def test_every_byte_survives():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(values)), values)
    assert from_bytes(values).aminmax() == (-1, 1)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 6), st.just(3)), elements=st.integers(0, 2)))
def test_distinct_returns_each_patch_once_with_indices(patches):
    found, numbers = distinct(torch.from_numpy(patches))
    assert len({tuple(patch) for patch in found.tolist()}) == len(found)
    np.testing.assert_array_equal(found.numpy()[numbers.numpy()], patches)
