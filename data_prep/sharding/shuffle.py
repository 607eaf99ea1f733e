"""A seeded permutation that needs no memory: it computes the record at a position instead of storing an order.

    positions  ->  four rounds of a Feistel network over the next power of four  ->  repeated while out of range
               ->  record numbers

Each round adds a hash of one half of the bits to the other half. This is invertible, so no number occurs twice
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, for repeating while out of range).
"""

import numpy as np

_ROUNDS = 4
_ODD_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Shuffle:
    """Permutation of 0..length-1, determined by the seed."""

    def __init__(self, length: int, seed: int) -> None:
        """Draws one key per round."""
        self.length = length
        self._half_bits = np.uint64(max(1, -(-max(length - 1, 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        self._keys = np.random.default_rng(seed).integers(0, 2**64, _ROUNDS, dtype=np.uint64)

    def numbers(self, positions: range) -> np.ndarray:
        """Returns the numbers of the records at `positions`: int64 [positions]."""
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
    """Mixes the bits: each input bit changes about half of the output bits. Products wrap around."""
    for factor in _ODD_FACTORS:
        values = (values ^ (values >> np.uint64(30))) * factor
    return values ^ (values >> np.uint64(31))
