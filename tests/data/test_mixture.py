"""The order of samples: once an epoch each, by weight, from the seed alone."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ufork.data.mixture import Mixture
from ufork.errors import ConfigError


@dataclass
class Source:
    size: int
    name: str = "toy"

    def __len__(self):
        return self.size

    def order(self, generator):
        return generator.permutation(self.size)


@st.composite
def mixtures(draw):
    num_lanes = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(num_lanes, 30), min_size=1, max_size=4))
    weights = draw(st.lists(st.floats(0.2, 5.0), min_size=len(sizes), max_size=len(sizes)))
    return Mixture([Source(size) for size in sizes], weights, num_lanes=num_lanes, seed=draw(st.integers(0, 9)))


def walk(mixture, lane):
    """A lane's draws from its start, with the counts after each."""
    counts = [0] * len(mixture.sources)
    while True:
        for draw in mixture.draws(lane, counts, 7):
            counts[draw.source] += 1
            yield draw, counts


@given(mixtures())
def test_over_all_lanes_each_sample_comes_once_an_epoch(mixture):
    seen = Counter()
    for lane in range(mixture.num_lanes):
        shares = [len(mixture.share(lane, source)) for source in range(len(mixture.sources))]
        for draw, counts in walk(mixture, lane):
            seen[draw.source, draw.epoch, draw.sample] += 1
            if all(count >= 2 * share for count, share in zip(counts, shares, strict=True)):
                break
    assert set(seen.values()) == {1}
    for source, stub in enumerate(mixture.sources):
        for epoch in (0, 1):
            assert {index for s, e, index in seen if (s, e) == (source, epoch)} == set(range(len(stub)))


@given(mixtures())
def test_counts_stay_close_to_the_weights(mixture):
    most_behind = len(mixture.sources) - 1
    for number, (_, counts) in zip(range(1, 60), walk(mixture, 0), strict=False):
        for weight, count in zip(mixture.weights, counts, strict=True):
            assert -1 - 1e-6 < number * weight - count < most_behind + 1e-6


def take(num_draws, **changes):
    values = {"sources": [Source(40), Source(9)], "weights": [3, 1], "num_lanes": 3, "seed": 5} | changes
    mixture = Mixture(values.pop("sources"), values.pop("weights"), **values)
    return [draw for draw, _ in (next(w) for w in [walk(mixture, 1)] for _ in range(num_draws))]


def test_the_order_follows_from_the_seed_and_changes_with_it_and_the_epoch():
    draws = take(80)
    assert draws == take(80)
    assert draws != take(80, seed=6)
    order = {epoch: [draw.sample for draw in draws if (draw.source, draw.epoch) == (0, epoch)] for epoch in (0, 1)}
    assert order[0] != order[1]


def test_a_draw_can_be_repeated_from_its_counts():
    mixture = Mixture([Source(4), Source(5)], [1, 1], num_lanes=2, seed=0)
    walked = [(draw, list(counts)) for (draw, counts), _ in zip(walk(mixture, 0), range(60), strict=False)]
    counts_before = [[0, 0], *(counts for _, counts in walked)]
    again = [draw for counts in reversed(counts_before[:-1]) for draw in mixture.draws(0, counts, 1)]
    assert again == [draw for draw, _ in reversed(walked)]


def test_a_source_that_cannot_fill_the_lanes_is_refused():
    with pytest.raises(ConfigError, match=r"small: 3 samples .* data\.num_lanes=4"):
        Mixture([Source(40), Source(3, "small")], [1, 1], num_lanes=4, seed=0)
