"""A packed sequence as one tensor of fixed size, so that a receive can be posted before its content is known.

PackedSequence -> int32 [header | arrays end to end | zeros] -> the same PackedSequence without its sample ids
"""

import torch
from torch import Tensor

from ufork.vocabulary import PackedSequence, Task

ARRAYS = (
    "token_ids_T",
    "labels_T",
    "positions_T",
    "segment_starts_S1",
    "image_positions_I",
    "image_begins_M",
    "image_ends_M",
    "codes_IC",
)
NUMBERS = ("longest_segment", "num_targets", "num_real_tokens")
_SEED_BITS = 31
_TASKS = tuple(Task)
_HEADER = 1 + len(NUMBERS) + 2 + len(ARRAYS)
"""Task, numbers, the seed in two words, length of each array."""


class PackedSequenceFormat:
    """Encodes packed sequences of `seq_len` tokens with `codes_per_position` codes per image position."""

    def __init__(self, *, seq_len: int, codes_per_position: int):
        self.seq_len, self.codes_per_position = seq_len, codes_per_position
        tokens, segments, images = 3 * seq_len, seq_len + 2, seq_len  # I + 2 M <= T
        self.size = _HEADER + tokens + segments + images + seq_len * codes_per_position

    def empty(self) -> Tensor:
        """Returns a buffer to receive into, on the CPU."""
        return torch.empty(self.size, dtype=torch.int32)

    def encode(self, sequence: PackedSequence) -> Tensor:
        """Returns int32 [size] on the CPU, where `sequence` must be."""
        arrays = [getattr(sequence, name).flatten() for name in ARRAYS]
        seed = (sequence.seed & ((1 << _SEED_BITS) - 1), sequence.seed >> _SEED_BITS)
        numbers = [
            _TASKS.index(sequence.task),
            *(getattr(sequence, name) for name in NUMBERS),
            *seed,
            *map(len, arrays),
        ]
        filled = torch.cat([torch.tensor(numbers, dtype=torch.int32), *(array.int() for array in arrays)])
        return torch.nn.functional.pad(filled, (0, self.size - len(filled)))

    def decode(self, encoded: Tensor) -> PackedSequence:
        """Returns the packed sequence on the CPU, where `encoded` must be, without sample ids."""
        header = encoded[:_HEADER].tolist()
        lengths = header[-len(ARRAYS) :]
        pieces = encoded[_HEADER : _HEADER + sum(lengths)].split(lengths)
        arrays = dict(zip(ARRAYS, pieces, strict=True))
        arrays |= {name: piece.long() for name, piece in arrays.items() if name != "segment_starts_S1"}
        arrays["codes_IC"] = arrays["codes_IC"].view(-1, self.codes_per_position)
        numbers = dict(zip(NUMBERS, header[1:], strict=False))
        low, high = header[1 + len(NUMBERS) : 3 + len(NUMBERS)]
        return PackedSequence(task=_TASKS[header[0]], **arrays, **numbers, sample_ids=(), seed=low | high << _SEED_BITS)
