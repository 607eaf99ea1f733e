"""Definitions that all packages of ufork share: tasks, special tokens, and the packed sequence that models read.

Symbols of the shapes: T tokens of a packed sequence, S samples in it, I image positions in it, M images in it, C codes
per image position.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Task(StrEnum):
    """Task of a sample; each sample has exactly one."""

    UNDERSTANDING = "understanding"
    GENERATION = "generation"


IGNORED_LABEL = -100
"""Label of a position that predicts no text token (torch's default `ignore_index`)."""


class ControlToken(str):
    """Name of a token that steers the model.

    Only a piece of a prompt that is of this type becomes the token; the same name in a text stays text.
    """


TURN_START = ControlToken("<|im_start|>")
TURN_END = ControlToken("<|im_end|>")
PADDING = ControlToken("<|vision_pad|>")
DROPPED_PROMPT = ControlToken("<|video_pad|>")
"""Replaces a caption that was dropped for classifier-free guidance (spec of the release, section 4)."""

SPECIAL_TOKENS = (ControlToken("<|endoftext|>"), TURN_START, TURN_END, PADDING, DROPPED_PROMPT)
"""Tokens that are never split or merged, named as in Qwen2.5."""

Prompt = str | tuple[str, ...]
"""What a text tokenizer encodes: a text, or texts and control tokens in order."""


@dataclass(frozen=True, kw_only=True)
class PackedSequence:
    """Samples of one task laid end to end in a sequence of fixed length, with padding at its end.

    An image is a begin mark, I/M positions in raster order, and an end mark. The padding is one more segment of
    `segment_starts_S1`: every token belongs to exactly one segment, and attends to no other.
    """

    task: Task
    token_ids_T: "Tensor"
    """int64; the padding token at image positions, image borders and padding."""
    positions_T: "Tensor"
    """int64; counts from 0 in each segment."""
    segment_starts_S1: "Tensor"
    """int32, cumulative; the first is 0 and the last T (flash-attn's `cu_seqlens`)."""
    longest_segment: int
    labels_T: "Tensor"
    """int64; the text token to predict at each position, already shifted, or IGNORED_LABEL."""
    image_positions_I: "Tensor"
    """int64; indices of the image positions in the sequence."""
    image_begins_M: "Tensor"
    """int64; indices of the begin-of-image marks."""
    image_ends_M: "Tensor"
    """int64; indices of the end-of-image marks."""
    codes_IC: "Tensor"
    """int64; the codes at `image_positions_I`. In generation also the targets, each predicted one position ahead."""
    num_targets: int
    """Number of text tokens (understanding) or of codes over all depths (generation) that the loss sums over."""
    num_real_tokens: int
    """Number of positions that are not padding."""
    sample_ids: tuple[str, ...]
    seed: int = 0
    """Seed of the dropout, 0 to 2^62 - 1; depends on the samples and their position in the lane, not on the rank."""

    def to(self, device: "torch.device | str") -> "PackedSequence":
        """Returns a copy with its tensors on `device`.

        To a GPU they travel as one copy from page-locked memory, which the host need not wait for: torch keeps that
        memory until the copy is done.
        """
        import torch  # not at the head: the schedule imports this module, and runs without torch

        device = torch.device(device)
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        if device.type != "cuda" or self.token_ids_T.device.type != "cpu":
            moved = {name: array.to(device) for name, array in arrays.items()}
        else:
            joined = torch.cat([array.flatten().long() for array in arrays.values()]).pin_memory()
            pieces = joined.to(device, non_blocking=True).split([array.numel() for array in arrays.values()])
            moved = {
                name: piece.view(array.shape).to(array.dtype)
                for (name, array), piece in zip(arrays.items(), pieces, strict=True)
            }
        return PackedSequence(**{**vars(self), **moved})
