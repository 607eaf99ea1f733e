"""A shuffle that takes no memory: which record stands at which position is computed, not stored.

    positions  ->  four rounds of a Feistel network over the next power of four  ->  again where outside  ->  numbers

Each round adds a hash of one half of the bits to the other, which can be undone: so no number comes twice.
"""

import numpy as np

_ROUNDS = 4
_ODD_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Shuffle:
    """A permutation of 0..length-1 that follows from the seed."""

    def __init__(self, length: int, seed: int) -> None:
        """Draws a key per round."""
        self.length = length
        self._half_bits = np.uint64(max(1, -(-max(length - 1, 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        self._keys = np.random.default_rng(seed).integers(0, 2**64, _ROUNDS, dtype=np.uint64)

    def numbers(self, positions: range) -> np.ndarray:
        """Of the records that stand at `positions`, int64."""
        values = self._permuted(np.arange(positions.start, positions.stop, positions.step, dtype=np.uint64))
        while (outside := values >= self.length).any():
            values[outside] = self._permuted(values[outside])
        return values.astype(np.int64)

    def _permuted(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._keys:
            left, right = right, (left + _hashed(right ^ key)) & self._mask
        return (left << self._half_bits) | right


def _hashed(values: np.ndarray) -> np.ndarray:
    """Every bit of a value moves about half of the result's; products wrap around."""
    for factor in _ODD_FACTORS:
        values = (values ^ (values >> np.uint64(30))) * factor
    return values ^ (values >> np.uint64(31))
