"""Causal attention inside the segments of a packed sequence: one contract, four kernels.

    flash_attention_3   the package of FlashAttention-3, for Hopper
    flash_attention     flash-attn 2
    varlen_attention    the FlashAttention-2 kernels that torch ships
    sdpa_attention      torch's scaled_dot_product_attention over the segments padded to one length

The first three compute in half precision on CUDA. Their backward passes add with atomics unless
`torch.use_deterministic_algorithms(True)` was called. Which kernel a model uses: `choose_attention_kernel`.

Shapes: T tokens of the packed sequence, S segments, H query heads, G key and value heads, W features of a head,
L longest segment.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ufork.model.layers.causal import causal_attention
from ufork.model.layers.segments import Segments

AttentionKernel = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]
"""(query THW, key TGW, value TGW, segments) -> THW; causal within segments, scale 1/sqrt(W)."""


def sdpa_attention(query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, segments: Segments) -> Tensor:
    """Pads the segments to one length; the padding comes after every token, so causal attention ignores it."""
    source_SL = segments.padded.source_SL

    def padded(x_THW: Tensor) -> Tensor:
        return x_THW.index_select(0, source_SL.flatten()).unflatten(0, source_SL.shape).transpose(1, 2)

    out_SHLW = causal_attention(padded(query_THW), padded(key_TGW), padded(value_TGW))
    return out_SHLW.transpose(1, 2).flatten(0, 1).index_select(0, segments.padded.place_T)


def flash_attention(query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, segments: Segments) -> Tensor:
    """FlashAttention-2's varlen kernel (arXiv 2307.08691), of the package `flash-attn`."""
    return _flash("flash_attn", query_THW, key_TGW, value_TGW, segments)


def flash_attention_3(query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, segments: Segments) -> Tensor:
    """FlashAttention-3's varlen kernel (arXiv 2407.08608), of the package `flash_attn_interface`; Hopper only."""
    out = _flash("flash_attn_interface", query_THW, key_TGW, value_TGW, segments)
    return out[0] if isinstance(out, tuple) else out  # its first releases return log-sum-exps too


def _flash(package: str, query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, segments: Segments) -> Any:
    return importlib.import_module(package).flash_attn_varlen_func(
        query_THW,
        key_TGW,
        value_TGW,
        cu_seqlens_q=segments.starts_S1,
        cu_seqlens_k=segments.starts_S1,
        max_seqlen_q=segments.longest,
        max_seqlen_k=segments.longest,
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def varlen_attention(query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, segments: Segments) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn`, of torch 2.11 and newer."""
    varlen = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    arguments, shares_heads = _varlen_arguments(varlen)
    if not shares_heads:
        group = query_THW.shape[1] // key_TGW.shape[1]
        key_TGW, value_TGW = (x.repeat_interleave(group, dim=1) for x in (key_TGW, value_TGW))
    starts, longest = segments.starts_S1, segments.longest
    return varlen(query_THW, key_TGW, value_TGW, starts, starts, longest, longest, **arguments)


@functools.cache
def _varlen_arguments(varlen: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Returns the arguments for causal attention, and whether key and value heads may be fewer (torch 2.12)."""
    shares_heads = "enable_gqa" in inspect.signature(varlen).parameters
    return {"window_size": (-1, 0)} | ({"enable_gqa": True} if shares_heads else {}), shares_heads
