"""Causal attention over sequences of equal length: torch's fused kernel, or explicit products where these are faster.

    scores = query key^T / sqrt(W), -inf where the key comes after the query -> softmax -> weighted sum of values

torch's fused CPU kernel is tuned for long sequences. On the short segments of packed samples most of its time is
overhead, especially in the bf16 backward pass. Two batched matrix products are faster there, although they also compute
the masked half of the scores and keep all of them.

On CUDA this is the last resort (`attention.py`). There torch's memory-efficient kernel, the only fused one for fp32,
needs as many key and value heads as query heads. Repeating them costs less than the S x H x L x L scores that torch
keeps otherwise.

Shapes: S sequences, H query heads, G key and value heads, L tokens, W features of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

MAX_EXPLICIT_LENGTH = 512
"""Longest sequence, in tokens, that uses explicit products in bf16. On a Zen 4 core, forward plus backward is then 4
times as fast at 100 tokens, twice at 250, and slower at 1000; in fp32 the two differ little at any of these lengths."""

CUDA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""torch's kernels on CUDA, without cuDNN's, which plans anew for each shape: every packed sequence has another."""


def causal_attention(query_SHLW: Tensor, key_SGLW: Tensor, value_SGLW: Tensor) -> Tensor:
    """Returns SHLW; consecutive groups of query heads share a key and value head."""
    is_short = query_SHLW.shape[2] <= MAX_EXPLICIT_LENGTH
    if is_short and query_SHLW.is_cpu and query_SHLW.dtype == torch.bfloat16:
        return explicit_attention(query_SHLW, key_SGLW, value_SGLW)
    group = query_SHLW.shape[1] // key_SGLW.shape[1]
    if not query_SHLW.is_cuda:
        return F.scaled_dot_product_attention(query_SHLW, key_SGLW, value_SGLW, is_causal=True, enable_gqa=group > 1)
    if query_SHLW.dtype == torch.float32:
        key_SGLW, value_SGLW = (x.repeat_interleave(group, dim=1) for x in (key_SGLW, value_SGLW))
    grouped = query_SHLW.shape[1] != key_SGLW.shape[1]
    with sdpa_kernel(CUDA_BACKENDS):
        return F.scaled_dot_product_attention(query_SHLW, key_SGLW, value_SGLW, is_causal=True, enable_gqa=grouped)


def explicit_attention(query_SHLW: Tensor, key_SGLW: Tensor, value_SGLW: Tensor) -> Tensor:
    """Returns SHLW. The query heads of a group are stacked along the tokens, so keys and values are not repeated."""
    num_sequences, num_attention_heads, length, width = query_SHLW.shape
    group = num_attention_heads // key_SGLW.shape[1]
    query = query_SHLW.reshape(-1, group * length, width)
    key, value = (x.reshape(-1, length, width) for x in (key_SGLW, value_SGLW))
    mask = query.new_full((length, length), -torch.inf).triu(1).repeat(group, 1)
    weights = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=width**-0.5).softmax(-1)
    return torch.bmm(weights, value).view(num_sequences, num_attention_heads, length, width)
