"""Attention over packed sequences: one contract, two kernels.

    query, key, value of a packed sequence + segment starts -> causal attention inside each segment

On a CUDA device with the `flash-attn` package the kernel is FlashAttention's varlen kernel; elsewhere it is torch's
scaled_dot_product_attention over the segments padded to one length. `choose_attention_kernel` decides once.

Shapes: T tokens of the packed sequence, S segments, H query heads, G key and value heads, W features of a head,
L longest segment.
"""

import importlib
import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ufork.model.layers.causal import causal_attention
from ufork.vocabulary import PackedSequence

log = logging.getLogger(__name__)


class Attend(Protocol):
    """The attention that a decoder layer calls; implementations decide where keys and values are kept."""

    def __call__(self, layer: int, query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, /) -> Tensor:
        """Returns THW."""
        ...


class Segments:
    """Segment boundaries of a packed sequence in the forms the kernels need; computed once, used by every layer."""

    def __init__(self, packed: PackedSequence):
        self.starts_S1 = packed.segment_starts_S1
        self.longest = packed.longest_segment
        lengths_S = self.starts_S1.diff()
        offsets_L = torch.arange(self.longest, device=lengths_S.device)
        self.is_token_SL = offsets_L < lengths_S[:, None]
        num_tokens = int(self.starts_S1[-1])
        self.source_SL = (self.starts_S1[:-1, None] + offsets_L).clamp(max=num_tokens - 1)
        self.padded_index_T = self.is_token_SL.flatten().nonzero().squeeze(1)


AttentionKernel = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]
"""(query THW, key TGW, value TGW, segments) -> THW; causal within segments, scale 1/sqrt(W)."""


def sdpa_attention(query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, segments: Segments) -> Tensor:
    """Pads the segments to one length; the padding comes after every token, so causal attention ignores it."""

    def padded(x_THW: Tensor) -> Tensor:
        return (
            x_THW.index_select(0, segments.source_SL.flatten()).unflatten(0, segments.source_SL.shape).transpose(1, 2)
        )

    out_SHLW = causal_attention(padded(query_THW), padded(key_TGW), padded(value_TGW))
    return out_SHLW.transpose(1, 2).flatten(0, 1).index_select(0, segments.padded_index_T)


def flash_attention(query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, segments: Segments) -> Tensor:
    """FlashAttention-2's varlen kernel (arXiv 2307.08691); half precision on a CUDA device only."""
    varlen = importlib.import_module("flash_attn").flash_attn_varlen_func
    return varlen(
        query_THW,
        key_TGW,
        value_TGW,
        cu_seqlens_q=segments.starts_S1,
        cu_seqlens_k=segments.starts_S1,
        max_seqlen_q=segments.longest,
        max_seqlen_k=segments.longest,
        causal=True,
    )


def choose_attention_kernel(device: torch.device, dtype: torch.dtype) -> AttentionKernel:
    """Returns FlashAttention where it can run, torch's kernel elsewhere, and logs the choice with its reason."""
    if device.type != "cuda":
        reason = f"the device is {device.type}"
    elif dtype not in (torch.float16, torch.bfloat16):
        reason = f"flash-attn computes in half precision, not {dtype}"
    else:
        try:
            importlib.import_module("flash_attn")
        except ImportError as error:
            reason = f"flash-attn cannot be imported ({error}); `pip install ufork[gpu]` brings it"
        else:
            log.info("attention: FlashAttention varlen kernel")
            return flash_attention
    log.info("attention: torch scaled_dot_product_attention (%s)", reason)
    return sdpa_attention


class PackedAttention:
    """`Attend` over the segments of one packed sequence."""

    def __init__(self, packed: PackedSequence, kernel: AttentionKernel):
        self.segments = Segments(packed)
        self.kernel = kernel

    def __call__(self, layer: int, query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor) -> Tensor:
        """Returns THW; all layers share the segments."""
        return self.kernel(query_THW, key_TGW, value_TGW, self.segments)
