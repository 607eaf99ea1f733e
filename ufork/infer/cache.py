"""Key-value cache of a batch of sequences, for every layer along a task's path.

    Prefill: one packed sequence of all prompts -> cache      Extend: one new token per sequence attends to the cache

Memory is allocated once for the whole length, so a step copies nothing that is already there. `Extend` reads as much of
it as it is told: what is filled, or all of it through a mask, so that every step runs the same kernels on the same
addresses, whatever its position, as a CUDA graph must.

Shapes: B sequences, L capacity in tokens, T tokens of the packed prompts, G key and value heads, H query heads, W
features of a head.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ufork.model.layers.attention import PackedAttention
from ufork.model.layers.attention_kernels import AttentionKernel
from ufork.vocabulary import PackedSequence


class KeyValueCache:
    """Keys and values by layer number; grows by one token per sequence and step."""

    def __init__(self, *, num_sequences: int, capacity_tokens: int):
        self.num_sequences, self.capacity_tokens = num_sequences, capacity_tokens
        self._keys_BGLW: dict[int, Tensor] = {}
        self._values_BGLW: dict[int, Tensor] = {}

    def store(self, layer: int, sequences_T: Tensor, positions_T: Tensor, key_TGW: Tensor, value_TGW: Tensor) -> None:
        """Stores keys and values at their sequence (`sequences_T`) and position."""
        if layer not in self._keys_BGLW:
            _, num_heads, width = key_TGW.shape
            shape = (self.num_sequences, num_heads, self.capacity_tokens, width)
            self._keys_BGLW[layer], self._values_BGLW[layer] = key_TGW.new_zeros(shape), value_TGW.new_zeros(shape)
        self._keys_BGLW[layer][sequences_T, :, positions_T] = key_TGW
        self._values_BGLW[layer][sequences_T, :, positions_T] = value_TGW

    def read(self, layer: int, num_sequences: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values BGLW of the first `num_sequences` sequences and `num_tokens` positions."""
        keys_BGLW, values_BGLW = self._keys_BGLW[layer], self._values_BGLW[layer]
        return keys_BGLW[:num_sequences, :, :num_tokens], values_BGLW[:num_sequences, :, :num_tokens]

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Copies the first `num_tokens` positions of the sequence `source` over those of `target`."""
        for memory_BGLW in (*self._keys_BGLW.values(), *self._values_BGLW.values()):
            memory_BGLW[target, :, :num_tokens] = memory_BGLW[source, :, :num_tokens]

    def copy_from(self, other: "KeyValueCache", sequences_B: Tensor) -> None:
        """Copies the only sequence of `other`, all of it, to the beginning of each of `sequences_B`."""
        for layer, key_1GLW in other._keys_BGLW.items():
            self._keys_BGLW[layer][sequences_B, :, : other.capacity_tokens] = key_1GLW
            self._values_BGLW[layer][sequences_B, :, : other.capacity_tokens] = other._values_BGLW[layer]

    def erase(self, sequence: int) -> None:
        """Sets all of a sequence to 0. Attention multiplies what its mask hides by 0, which does not remove NaN."""
        for memory_BGLW in (*self._keys_BGLW.values(), *self._values_BGLW.values()):
            memory_BGLW[sequence] = 0


class Prefill:
    """`Attend` over a packed sequence of prompts, one segment per sequence of the batch; fills the cache."""

    def __init__(
        self, cache: KeyValueCache, packed: PackedSequence, kernel: AttentionKernel, sequences_B: Tensor | None = None
    ):
        """Segment i becomes the sequence `sequences_B[i]` of the cache; by default the sequence i."""
        self.cache = cache
        self.attend = PackedAttention(packed, kernel)
        lengths_B = packed.segment_starts_S1.diff()
        if sequences_B is None:
            sequences_B = torch.arange(len(lengths_B), device=lengths_B.device)
        self.sequences_T = sequences_B.repeat_interleave(lengths_B)
        self.positions_T = packed.positions_T

    def __call__(self, layer: int, query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor) -> Tensor:
        """Stores keys and values, and attends as `PackedAttention` does."""
        self.cache.store(layer, self.sequences_T, self.positions_T, key_TGW, value_TGW)
        return self.attend(layer, query_THW, key_TGW, value_TGW)


class Extend:
    """`Attend` of one new token per sequence to itself and all tokens before it; never waits for the device."""

    def __init__(
        self,
        cache: KeyValueCache,
        positions_B: Tensor,
        dtype: torch.dtype,
        *,
        num_tokens: int,
        is_masked: bool,
    ):
        """Attends to the first `num_tokens` positions; with a mask, of these to a sequence's own only.

        The new tokens are those of the first sequences of the cache, which may hold more.
        """
        self.cache, self.positions_B, self.num_tokens = cache, positions_B, num_tokens
        self.sequences_B = torch.arange(len(positions_B), device=positions_B.device)
        self.mask_B11L = _mask(positions_B, num_tokens, dtype) if is_masked else None

    def __call__(self, layer: int, query_BHW: Tensor, key_BGW: Tensor, value_BGW: Tensor) -> Tensor:
        """Returns the attention output BHW."""
        self.cache.store(layer, self.sequences_B, self.positions_B, key_BGW, value_BGW)
        keys_BGLW, values_BGLW = self.cache.read(layer, len(query_BHW), self.num_tokens)
        return _attend_to_cache(query_BHW, keys_BGLW, values_BGLW, self.mask_B11L)


MASK_ALIGNMENT_TOKENS = 16
"""Masks on CUDA have a multiple of it as their length: kernels copy one of another length first."""

CUDA_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""torch's CUDA kernels without cuDNN's, which torch prefers on Hopper and which plans anew for each length."""


def _attend_to_cache(query_BHW: Tensor, keys_BGLW: Tensor, values_BGLW: Tensor, mask_B11L: Tensor | None) -> Tensor:
    """Returns BHW.

    The query heads that share a key and value head are laid out as that many queries of it. Otherwise CUDA's fused
    kernels, which take a mask or grouped heads but not both, would leave the work to one that repeats the cache.
    """
    query_BGQW = query_BHW.unflatten(1, (keys_BGLW.shape[1], -1))
    if query_BHW.is_cpu:
        return _explicit_attention(query_BGQW, keys_BGLW, values_BGLW, mask_B11L).flatten(1, 2)
    mask_B1QL = None if mask_B11L is None else mask_B11L.expand(-1, -1, query_BGQW.shape[2], -1)
    with sdpa_kernel(CUDA_KERNELS) if query_BHW.is_cuda else nullcontext():
        out_BGQW = F.scaled_dot_product_attention(query_BGQW, keys_BGLW, values_BGLW, attn_mask=mask_B1QL)
    return out_BGQW.flatten(1, 2)


def _explicit_attention(query_BGQW: Tensor, keys_BGLW: Tensor, values_BGLW: Tensor, mask_B11L: Tensor | None) -> Tensor:
    """Returns BGQW by batched products, of which torch's fused kernel for CPUs makes many small ones."""
    query, keys, values = (x.flatten(0, 1) for x in (query_BGQW, keys_BGLW, values_BGLW))
    scores_BGQL = torch.bmm(query * query.shape[-1] ** -0.5, keys.mT).unflatten(0, query_BGQW.shape[:2])
    if mask_B11L is not None:
        scores_BGQL = scores_BGQL + mask_B11L
    return torch.bmm(scores_BGQL.softmax(-1).flatten(0, 1), values).view_as(query_BGQW)


def _mask(positions_B: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor:
    """Returns B11L: 0 for those of the first `num_tokens` tokens that a sequence's newest one attends to, else -inf."""
    unseen_BL = torch.arange(num_tokens, device=positions_B.device) > positions_B[:, None]
    mask_BL = torch.zeros_like(unseen_BL, dtype=dtype).masked_fill(unseen_BL, -torch.inf)
    return mask_BL[:, None, None]
