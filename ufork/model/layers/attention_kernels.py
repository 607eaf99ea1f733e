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
from torch.autograd.function import once_differentiable

from ufork.model.layers.causal import causal_attention
from ufork.model.layers.segments import Segments

AttentionKernel = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]
"""(query THW, key TGW, value TGW, segments) -> THW; causal within segments, scale 1/sqrt(W)."""


def sdpa_attention(query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, segments: Segments) -> Tensor:
    """Pads the segments to one length; the padding comes after every token, so causal attention ignores it."""
    source_SL, place_T = segments.padded.source_SL, segments.padded.place_T
    query_SHLW, key_SGLW, value_SGLW = (
        _Padded.apply(x, source_SL.flatten(), place_T).unflatten(0, source_SL.shape).transpose(1, 2)
        for x in (query_THW, key_TGW, value_TGW)
    )
    out_SHLW = causal_attention(query_SHLW, key_SGLW, value_SGLW)
    return _Unpadded.apply(out_SHLW.transpose(1, 2).flatten(0, 1), place_T)


class _Padded(torch.autograd.Function):
    """The rows of `source`, as `index_select`, with a backward pass that copies.

    Only padding attends to padding, and nothing reads its outputs, so its gradient is zero, and a token's is that of
    its place. Torch would add all rows into zeros, one after the other on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x_THW: Tensor, source_N: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        return x_THW.index_select(0, source_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (place_T,) = ctx.saved_tensors
        return gradients[0].index_select(0, place_T), None, None


class _Unpadded(torch.autograd.Function):
    """The rows at the tokens' places, no two of which are the same: its backward pass copies too."""

    @staticmethod
    def forward(ctx: Any, x_NHW: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        ctx.shape = x_NHW.shape
        return x_NHW.index_select(0, place_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (place_T,) = ctx.saved_tensors
        return gradients[0].new_zeros(ctx.shape).index_copy_(0, place_T, gradients[0]), None


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
