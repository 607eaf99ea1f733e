"""The computed shuffle is a permutation and looks random."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sharding.shuffle import Shuffle


@given(st.integers(1, 5000), st.integers(0, 9))
def test_every_number_occurs_once(length, seed):
    numbers = Shuffle(length, seed).numbers(range(length))
    assert np.array_equal(np.sort(numbers), np.arange(length))


@given(st.integers(1, 3000), st.integers(0, 3000), st.integers(1, 100))
def test_a_range_of_positions_agrees_with_the_whole(length, start, size):
    positions = range(min(start, length), min(start + size, length))
    shuffle = Shuffle(length, 0)
    whole = shuffle.numbers(range(length))
    assert np.array_equal(shuffle.numbers(positions), whole[positions.start : positions.stop])


def test_neighbours_are_far_apart():
    numbers = Shuffle(100_000, 1).numbers(range(100_000))
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]) < 0.02
    # A thousand neighbours are spread evenly over the whole: about a hundred in each tenth.
    counts = np.histogram(numbers[:1000], bins=10, range=(0, 100_000))[0]
    assert counts.min() > 60 and counts.max() < 150


def test_seeds_differ_and_a_huge_length_needs_no_memory():
    first, second = (Shuffle(10**12, seed).numbers(range(10**11, 10**11 + 100)) for seed in (0, 1))
    assert len(set(first.tolist())) == 100 and not np.array_equal(first, second)
    assert first.max() > 2**32
