"""Segment boundaries of a packed sequence in the forms that attention kernels need, computed once for all layers.

Kernels for variable lengths read the starts as they are. The padded form is for `sdpa_attention` alone, so it is made
when that asks for it. Nothing here reads a tensor on the host: on a GPU that would wait for all queued kernels.

Shapes: T tokens of the packed sequence, S segments, L longest segment.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ufork.vocabulary import PackedSequence


@dataclass(frozen=True, kw_only=True)
class PaddedSegments:
    """Where tokens go if every segment is padded to the longest, and where they come from."""

    source_SL: Tensor
    """The token at each place; at places of padding the segment's last one. A mask multiplies what it hides by 0, so
    that values that are not finite, if they came from another segment, would reach this one."""
    place_T: Tensor
    """The place of each token, counted over all segments."""


class Segments:
    """Starts and longest length of the segments, and their padded form on demand."""

    def __init__(self, packed: PackedSequence):
        self.starts_S1 = packed.segment_starts_S1
        self.longest = packed.longest_segment
        self._positions_T = packed.positions_T

    @cached_property
    def padded(self) -> PaddedSegments:
        """The padded form."""
        starts_S1, num_tokens = self.starts_S1, len(self._positions_T)
        offsets_L = torch.arange(self.longest, device=starts_S1.device)
        tokens_T = torch.arange(num_tokens, device=starts_S1.device, dtype=starts_S1.dtype)
        segment_T = torch.searchsorted(starts_S1, tokens_T, right=True) - 1
        return PaddedSegments(
            source_SL=torch.minimum(starts_S1[:-1, None] + offsets_L, starts_S1[1:, None] - 1),
            place_T=segment_T * self.longest + self._positions_T,
        )
