"""Decides which sample comes next: a weighted, shuffled, reproducible order over the sources of one task.

    sources, weights, seed -> for each lane an endless sequence of (source, sample, epoch) -> samples, a block at a time

The order of an epoch of a source is drawn from (seed, source, epoch), and lane l of n reads the l-th of n equal pieces
of it, so that over all lanes each sample comes once per epoch of its source. Within a lane, the next sample is from the
source that is furthest below its weight. A lane's position is the number of samples that it took from each source.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.errors import ConfigError, SampleError


class Draw(NamedTuple):
    """One sample in a lane's order."""

    source: int
    sample: int
    """Number of the sample within the source."""
    epoch: int
    """Number of times that the lane had read its whole share of the source before."""


class Mixture:
    """The order of one task's samples, and the samples."""

    def __init__(self, sources: Sequence[ShardSource], weights: Sequence[float], *, num_lanes: int, seed: int):
        """Reads no sample yet.

        Raises:
            ConfigError: a source has fewer samples than there are lanes.
        """
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
        """Returns the next `number` samples of `lane`, after it took `counts[i]` samples from source i."""
        taken, shares, draws = list(counts), [self.share(lane, source) for source in range(len(counts))], []
        for source in self._next_sources(counts, number):
            epoch, index = divmod(taken[source], len(shares[source]))
            draws.append(Draw(source, int(self._order(source, epoch)[shares[source].start + index]), epoch))
            taken[source] += 1
        return draws

    def _next_sources(self, counts: Sequence[int], number: int) -> list[int]:
        """Sources of a lane's next samples: each time the one that is furthest below its weight."""
        if len(counts) == 1:
            return [0] * number
        taken, chosen = list(counts), []
        for total in range(sum(counts) + 1, sum(counts) + 1 + number):
            missing = [weight * total - count for weight, count in zip(self.weights, taken, strict=True)]
            chosen.append(missing.index(max(missing)))
            taken[chosen[-1]] += 1
        return chosen

    def share(self, lane: int, source: int) -> range:
        """Indices into an epoch's order of `source` that `lane` reads."""
        size = len(self.sources[source])
        return range(lane * size // self.num_lanes, (lane + 1) * size // self.num_lanes)

    def read(self, draws: Sequence[Draw]) -> list[Sample | SampleError]:
        """Reads the samples of `draws`, in one call per source; an unusable sample is returned as a SampleError.

        Raises:
            ShardError: a shard cannot be read.
        """
        read: dict[int, Sample | SampleError] = {}
        for number, source in enumerate(self.sources):
            indices = [index for index, draw in enumerate(draws) if draw.source == number]
            samples = source.read([draws[index].sample for index in indices])
            read.update(zip(indices, samples, strict=True))
        return [read[index] for index in range(len(draws))]

    def _cache_orders(self) -> None:
        self._order = lru_cache(maxsize=2 * len(self.sources))(self._drawn_order)

    def _drawn_order(self, source: int, epoch: int) -> np.ndarray:
        return self.sources[source].order(np.random.default_rng((self.seed, source, epoch)))

    def __getstate__(self) -> dict[str, Any]:
        """Omits the cached orders, which another process draws again."""
        return {name: value for name, value in vars(self).items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores what `__getstate__` returned."""
        vars(self).update(state)
        self._cache_orders()
