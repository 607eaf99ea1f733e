"""A packed row as one tensor of fixed size, so that its receiver can post its buffer before it knows the row.

PackedSequence -> int32 [header | arrays end to end | zeros] -> the same PackedSequence, its sample ids left behind
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
    """The tensor that carries rows of `seq_len` with images of `codes_per_position` codes."""

    def __init__(self, *, seq_len: int, codes_per_position: int):
        self.seq_len, self.codes_per_position = seq_len, codes_per_position
        tokens, segments, images = 3 * seq_len, seq_len + 2, seq_len  # I + 2 M <= T
        self.size = _HEADER + tokens + segments + images + seq_len * codes_per_position

    def empty(self, device: torch.device) -> Tensor:
        """A buffer to receive into."""
        return torch.empty(self.size, dtype=torch.int32, device=device)

    def encode(self, sequence: PackedSequence) -> Tensor:
        """int32 [size] on the CPU."""
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
        """The row on the device of `encoded`, without sample ids."""
        header = encoded[:_HEADER].tolist()
        lengths = header[-len(ARRAYS) :]
        parts = encoded[_HEADER : _HEADER + sum(lengths)].split(lengths)
        arrays = {
            name: part if name == "segment_starts_S1" else part.long() for name, part in zip(ARRAYS, parts, strict=True)
        }
        arrays["codes_IC"] = arrays["codes_IC"].view(-1, self.codes_per_position)
        numbers = dict(zip(NUMBERS, header[1:], strict=False))
        low, high = header[1 + len(NUMBERS) : 3 + len(NUMBERS)]
        return PackedSequence(task=_TASKS[header[0]], **arrays, **numbers, sample_ids=(), seed=low | high << _SEED_BITS)
