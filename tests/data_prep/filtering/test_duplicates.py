"""Duplicates: the search finds the same as comparing all pairs, the first is kept, skin tones of an emoji are near."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.demo.twemoji import png_folder
from data_prep.filtering import duplicates
from data_prep.filtering.difference_hash import NO_PICTURE
from data_prep.filtering.duplicates import (
    EXACT,
    FINGERPRINT_DTYPE,
    NEAR,
    DuplicatesConfig,
    Fingerprint,
    duplicates_of,
    fingerprint,
)
from tests.data_prep.filtering.test_difference_hash import encoded, picture

PNG, JPEG, OTHER = encoded(picture(1)), encoded(picture(1), "JPEG"), encoded(picture(2))
BOTH = {"exact": True, "perceptual": True, "max_distance": 2}


def reasons(records: list[tuple[bytes | None, str]], **config) -> list[str | None]:
    settings = DuplicatesConfig(**config)
    prints = [fingerprint(image, text, settings) for image, text in records]
    found = duplicates_of(np.array(prints, FINGERPRINT_DTYPE), settings)
    return [found.reason(number) for number in range(len(records))]


def test_nothing_is_dropped_or_decoded_unless_asked_for():
    assert reasons([(PNG, "a"), (PNG, "a"), (JPEG, "a")]) == [None] * 3
    assert (
        not DuplicatesConfig().wanted and fingerprint(PNG, "a", DuplicatesConfig(exact=True)).perceptual == NO_PICTURE
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"exact": True}, [None, EXACT, None, None, None]),
        ({"perceptual": True, "max_distance": 2}, [None, NEAR, NEAR, None, None]),
        (BOTH, [None, EXACT, NEAR, None, None]),
        ({**BOTH, "same_text": False}, [None, EXACT, NEAR, EXACT, None]),
    ],
    ids=["exact", "perceptual", "both", "any text"],
)
def test_duplicates_are_dropped_with_the_reason(config, expected):
    assert reasons([(PNG, "a"), (PNG, "a"), (JPEG, "a"), (PNG, "b"), (OTHER, "a")], **config) == expected


@pytest.mark.parametrize("same_text", [True, False])
def test_records_without_an_image_are_duplicates_by_their_text(same_text):
    records = [(None, "a"), (None, "b"), (None, "a"), (None, ""), (b"", "a"), (b"a", "")]
    assert reasons(records, **BOTH, same_text=same_text) == [None, None, EXACT, None, None, None]


def test_damaged_and_plain_images_are_never_near_duplicates():
    assert reasons([(b"x", "a"), (b"y", "a"), (b"x", "a")], perceptual=True, max_distance=4) == [None] * 3


def prints_of(values: list[tuple[int, int, int]]) -> np.ndarray:
    """Makes fingerprints of (file, 8-bit perceptual hash, text); the 8 bits are spread over all 64."""
    spread = [sum((bits >> bit & 1) << (bit * 37 + 5) % 64 for bit in range(8)) for _, bits, _ in values]
    return np.array([Fingerprint(file, 0, hash, text) for (file, _, text), hash in zip(values, spread, strict=True)],
                    FINGERPRINT_DTYPE)  # fmt: skip


def by_all_pairs(prints: np.ndarray, config: DuplicatesConfig) -> tuple[list[bool], list[int]]:
    """Compares all pairs: which records are dropped, and for each the first of its chain."""
    values = [tuple(int(value) for value in each) for each in prints]
    original = list(range(len(values)))
    for later, (*file, hash, text) in enumerate(values):
        for earlier in range(later):
            *other_file, other_hash, other_text = values[earlier]
            same_file = config.exact and file == other_file
            near = (hash ^ other_hash).bit_count() <= config.max_distance
            alike = config.perceptual and near and NO_PICTURE not in (hash, other_hash)
            if (same_file or alike) and text == other_text:
                original[later] = original[earlier]
                break
    return [number != first for number, first in enumerate(original)], original


@st.composite
def small_values(draw) -> list[tuple[int, int, int]]:
    """Draws (file, perceptual hash, text): equal files have equal hashes."""
    hashes = draw(st.lists(st.integers(0, 255), min_size=12, max_size=12))
    files = draw(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 1)), max_size=40))
    return [(file, hashes[file], text) for file, text in files]


@settings(max_examples=200)
@given(small_values(), st.booleans(), st.booleans(), st.integers(0, 4))
def test_finds_the_same_as_comparing_all_pairs(values, exact, perceptual, max_distance):
    config = DuplicatesConfig(exact=exact, perceptual=perceptual, max_distance=max_distance)
    found = duplicates_of(prints_of(values), config)
    dropped, originals = by_all_pairs(prints_of(values), config)
    assert found.dropped.tolist() == dropped
    assert found.originals.tolist() == originals
    assert not found.dropped[found.originals].any()


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=5), st.integers(0, 4))
def test_any_bits_may_differ(hash, bits, max_distance):
    other = hash ^ sum(1 << bit for bit in bits)
    prints = np.array([Fingerprint(1, 0, hash, 0), Fingerprint(2, 0, other, 0)], FINGERPRINT_DTYPE)
    near = NO_PICTURE not in (hash, other) and len(bits) <= max_distance
    config = DuplicatesConfig(perceptual=True, max_distance=max_distance)
    assert duplicates_of(prints, config).dropped.tolist() == [False, near]


@pytest.mark.parametrize("max_distance", range(1, 5))
def test_no_key_lies_in_a_row_or_column_of_the_image(max_distance):
    masks = duplicates._masks(max_distance)
    rows = [0xFF << 8 * row for row in range(8)]
    columns = [0x0101_0101_0101_0101 << column for column in range(8)]
    assert all(int(mask) & line for mask in masks for line in (*rows, *columns))
    assert len(masks) == math.comb(2 * max_distance, max_distance)


def test_many_records_take_bounded_memory():
    rng = np.random.default_rng(0)
    prints = np.zeros(100_000, FINGERPRINT_DTYPE)
    for name in FINGERPRINT_DTYPE.names:
        prints[name] = rng.integers(1, 2**63, len(prints), dtype=np.uint64)
    prints[5000:70_000] = prints[0]  # two thousand million pairs
    tracemalloc.start()
    found = duplicates_of(prints, DuplicatesConfig(**BOTH))
    assert tracemalloc.get_traced_memory()[1] < 120 * len(prints)
    tracemalloc.stop()
    assert found.dropped.sum() == 65_000 and set(found.originals[5000:70_000]) == {0}


def test_a_distance_out_of_range_is_refused():
    with pytest.raises(ValidationError):
        DuplicatesConfig(max_distance=5)


def test_an_emoji_in_two_skin_tones_looks_the_same_and_another_does_not():
    images = [(png_folder() / f"1f{name}.png").read_bytes() for name in ("4aa-1f3fb", "4aa-1f3fc", "680", "436")]
    looking = {"perceptual": True, "max_distance": 3, "same_text": False}
    assert reasons([(image, "") for image in images], **looking) == [None, NEAR, None, None]
    assert reasons([(image, str(number)) for number, image in enumerate(images)], perceptual=True) == [None] * 4
