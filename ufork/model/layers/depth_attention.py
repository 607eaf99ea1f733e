"""Causal attention over the handful of residual depths of an image position, in two forms of explicit products.

    scores = query key^T / sqrt(W), -inf where the key's depth is below the query's -> softmax -> weighted sum of values

Kernels for long sequences do not fit: FlashAttention-2's backward pass rounds every sequence up to 128 queries, which
for 7,290 positions of 32 heads and 112 features is a buffer of 15.3 GB beside 0.2 GB of queries.

`depth_attention` uses batched matrix products, the fastest form on CPUs without a compiler. On a GPU they are as many
products of 4 x 4 as there are positions and heads, and first need copies of their inputs: 8.9 GB read and written
forward and backward for the sizes above in bf16, counted on meta tensors. `elementwise_depth_attention` is for
torch.compile, which fuses it into passes that read queries, keys and values as the projections left them and keep what
is wide on the chip: 2.7 GB, by the compiler's own count.

Shapes: I image positions, C depths, D earlier depths and these, H heads, W features of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor

DepthKernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query ICHW, key ICHW, value ICHW) -> ICHW, causal over C."""


def depth_attention(query_ICHW: Tensor, key_IDHW: Tensor, value_IDHW: Tensor) -> Tensor:
    """Returns ICHW; the queries are those of the last C of D depths."""
    num_positions, num_queries, num_heads, width = query_ICHW.shape
    query, key, value = (
        x.transpose(1, 2).reshape(num_positions * num_heads, x.shape[1], width)
        for x in (query_ICHW, key_IDHW, value_IDHW)
    )
    num_keys = key.shape[1]
    unseen = query.new_full((num_queries, num_keys), -torch.inf).triu(num_keys - num_queries + 1)
    weights = torch.baddbmm(unseen, query, key.transpose(1, 2), alpha=width**-0.5).softmax(-1)
    mixed = torch.bmm(weights, value)
    return mixed.view(num_positions, num_heads, num_queries, width).transpose(1, 2)


def elementwise_depth_attention(query_ICHW: Tensor, key_ICHW: Tensor, value_ICHW: Tensor) -> Tensor:
    """Returns ICHW of all depths, computed in fp32; without a compiler it would store C x C products of heads."""
    query, key, value = (x.float() for x in (query_ICHW, key_ICHW, value_ICHW))
    depths, width = query.shape[1], query.shape[-1]
    scores_ICCH = (query[:, :, None] * key[:, None]).sum(-1) * width**-0.5
    seen_CC = torch.ones(depths, depths, dtype=torch.bool, device=query.device).tril()
    weights_ICCH = scores_ICCH.masked_fill(~seen_CC[:, :, None], -torch.inf).softmax(2)
    return (weights_ICCH[..., None] * value[:, None]).sum(2).to(query_ICHW.dtype)
