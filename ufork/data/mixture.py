"""Which sample comes next: a weighted, shuffled, reproducible order over the sources of one task.

    sources, weights, seed -> for each lane an endless sequence of (source, index, epoch) -> samples, a block at a time

The order of an epoch of a source is drawn from (seed, source, epoch); lane l of n has its l-th n-th. So over all lanes
each sample comes once per epoch of its source. Within a lane the sources take turns such that the counts stay as close
as they can to the weights. A lane's position is the number of samples it took from each source, nothing else.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.errors import ConfigError, SampleError


class Draw(NamedTuple):
    """One place in a lane's order."""

    source: int
    sample: int
    """Number within the source."""
    epoch: int
    """Times the lane has been through its share of the source."""


class Mixture:
    """The order of one task's samples, and the samples.

    Raises:
        ConfigError: a source has fewer samples than there are lanes.
    """

    def __init__(self, sources: Sequence[ShardSource], weights: Sequence[float], *, num_lanes: int, seed: int):
        for source in sources:
            if len(source) < num_lanes:
                raise ConfigError(
                    f"{source.name}: {len(source)} samples are fewer than data.num_lanes={num_lanes}; lower num_lanes"
                )
        self.sources = tuple(sources)
        self.weights = [weight / sum(weights) for weight in weights]
        self.num_lanes = num_lanes
        self.seed = seed
        self._cache_orders()

    def draws(self, lane: int, counts: Sequence[int], number: int) -> list[Draw]:
        """What lane `lane` takes next, `number` samples, after it took `counts[i]` samples from source i."""
        taken, shares, draws = list(counts), [self.share(lane, source) for source in range(len(counts))], []
        for source in self._turns(counts, number):
            epoch, place = divmod(taken[source], len(shares[source]))
            draws.append(Draw(source, int(self._order(source, epoch)[shares[source].start + place]), epoch))
            taken[source] += 1
        return draws

    def _turns(self, counts: Sequence[int], number: int) -> list[int]:
        """Sources of a lane's next samples: always the one that is furthest behind its weight."""
        if len(counts) == 1:
            return [0] * number
        taken, turns = list(counts), []
        for total in range(sum(counts) + 1, sum(counts) + 1 + number):
            behind = [weight * total - count for weight, count in zip(self.weights, taken, strict=True)]
            turns.append(behind.index(max(behind)))
            taken[turns[-1]] += 1
        return turns

    def share(self, lane: int, source: int) -> range:
        """Places in an epoch's order of `source` that `lane` has."""
        size = len(self.sources[source])
        return range(lane * size // self.num_lanes, (lane + 1) * size // self.num_lanes)

    def read(self, draws: Sequence[Draw]) -> list[Sample | SampleError]:
        """The samples in the order of `draws`, each source read once; in place of a damaged one what is wrong with it.

        Raises:
            ShardError: a shard cannot be read.
        """
        read: dict[int, Sample | SampleError] = {}
        for number, source in enumerate(self.sources):
            places = [place for place, draw in enumerate(draws) if draw.source == number]
            samples = source.read([draws[place].sample for place in places])
            read.update(zip(places, samples, strict=True))
        return [read[place] for place in range(len(draws))]

    def _cache_orders(self) -> None:
        self._order = lru_cache(maxsize=2 * len(self.sources))(self._drawn_order)

    def _drawn_order(self, source: int, epoch: int) -> np.ndarray:
        return self.sources[source].order(np.random.default_rng((self.seed, source, epoch)))

    def __getstate__(self) -> dict[str, Any]:
        """Orders are drawn anew in another process."""
        return {name: value for name, value in vars(self).items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The counterpart."""
        vars(self).update(state)
        self._cache_orders()
