"""Causal attention of sequences of one length: torch's fused kernel, or the formula where that is faster on a CPU.

    scores = query key^T / sqrt(W), -inf where the key comes after the query -> softmax -> mix of values

torch's fused CPU kernel is made for long sequences: on the short ones of packed samples, and on the four depths of an
image position, most of its time is overhead, above all in its half-precision backward pass. Two batched matrix products
are faster there, although they compute the half of the scores that the mask hides, and keep all of them.

Shapes: S sequences, H query heads, G key and value heads, L tokens, W features of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST_BY_FORMULA = 512
"""Sequences of up to so many tokens take the formula in bf16. On a Zen 4, forward and backward are then 4 times as fast
at 100 tokens, twice at 250, slower at 1000; in fp32 the two hardly differ at any of these lengths."""


def causal_attention(query_SHLW: Tensor, key_SGLW: Tensor, value_SGLW: Tensor) -> Tensor:
    """SHLW; query heads share key and value heads in consecutive groups."""
    is_short = query_SHLW.shape[2] <= LONGEST_BY_FORMULA
    if is_short and query_SHLW.is_cpu and query_SHLW.dtype == torch.bfloat16:
        return attention_by_formula(query_SHLW, key_SGLW, value_SGLW)
    grouped = query_SHLW.shape[1] != key_SGLW.shape[1]
    return F.scaled_dot_product_attention(query_SHLW, key_SGLW, value_SGLW, is_causal=True, enable_gqa=grouped)


def attention_by_formula(query_SHLW: Tensor, key_SGLW: Tensor, value_SGLW: Tensor) -> Tensor:
    """SHLW. The query heads of a group are stacked along the tokens, so that keys and values are not repeated."""
    num_sequences, num_attention_heads, length, width = query_SHLW.shape
    group = num_attention_heads // key_SGLW.shape[1]
    query = query_SHLW.reshape(-1, group * length, width)
    key, value = (x.reshape(-1, length, width) for x in (key_SGLW, value_SGLW))
    mask = query.new_full((length, length), -torch.inf).triu(1).repeat(group, 1)
    weights = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=width**-0.5).softmax(-1)
    return torch.bmm(weights, value).view(num_sequences, num_attention_heads, length, width)
