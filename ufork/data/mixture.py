"""Which sample comes next: a weighted, shuffled, reproducible order over the sources of one task.

    sources, weights, seed -> for each lane an endless sequence of (source, index, epoch)

The order of an epoch of a source is a permutation drawn from (seed, source, epoch); lane l of n takes its places l, l +
n, l + 2n, ... So over all lanes each sample comes once per epoch of its source. Within a lane the sources take turns
such that the counts stay as close as they can to the weights. A lane's position is the number of samples it took from
each source, nothing else.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ufork.data.shards import ShardSource
from ufork.errors import ConfigError


@dataclass(frozen=True)
class Draw:
    """One place in a lane's order."""

    source: int
    index: int
    """Of the sample within the source."""
    epoch: int
    """Times the lane has been through its share of the source."""


class Mixture:
    """The order of one task's samples.

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
        self.weights = np.array(weights) / np.sum(weights)
        self.num_lanes = num_lanes
        self.seed = seed
        self._order = functools.lru_cache(maxsize=2 * len(sources))(self._permutation)

    def draw(self, lane: int, counts: Sequence[int]) -> Draw:
        """What lane `lane` takes after it took `counts[i]` samples from source i."""
        source = int(np.argmax(self.weights * (sum(counts) + 1) - np.array(counts)))
        share = len(range(lane, len(self.sources[source]), self.num_lanes))
        epoch, place = divmod(counts[source], share)
        return Draw(source, int(self._order(source, epoch)[lane + place * self.num_lanes]), epoch)

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, source, epoch)).permutation(len(self.sources[source]))
