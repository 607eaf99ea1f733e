"""Key-value cache of a batch of sequences, for every layer along a task's path.

    Prefill: one packed sequence of all prompts -> cache      Extend: one new token per sequence attends to the cache

Memory is allocated once for the whole length, so a step copies nothing that is already there.

Shapes: B sequences, L capacity in tokens, T tokens of the packed prompts, G key and value heads, H query heads, W
features of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ufork.model.layers.attention import PackedAttention
from ufork.model.layers.attention_kernels import AttentionKernel
from ufork.vocabulary import PackedSequence


class KeyValueCache:
    """Keys and values by layer number; grows by one token per sequence and step."""

    def __init__(self, *, num_sequences: int, capacity_tokens: int):
        self.num_sequences, self.capacity_tokens = num_sequences, capacity_tokens
        self._keys_BLGW: dict[int, Tensor] = {}
        self._values_BLGW: dict[int, Tensor] = {}

    def store(self, layer: int, sequences_T: Tensor, positions_T: Tensor, key_TGW: Tensor, value_TGW: Tensor) -> None:
        """Stores keys and values at their sequence (`sequences_T`) and position."""
        if layer not in self._keys_BLGW:
            shape = (self.num_sequences, self.capacity_tokens, *key_TGW.shape[1:])
            self._keys_BLGW[layer], self._values_BLGW[layer] = key_TGW.new_zeros(shape), value_TGW.new_zeros(shape)
        self._keys_BLGW[layer][sequences_T, positions_T] = key_TGW
        self._values_BLGW[layer][sequences_T, positions_T] = value_TGW

    def read(self, layer: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values BGLW of the first `num_tokens` positions."""
        keys_BLGW, values_BLGW = self._keys_BLGW[layer], self._values_BLGW[layer]
        return keys_BLGW[:, :num_tokens].transpose(1, 2), values_BLGW[:, :num_tokens].transpose(1, 2)


class Prefill:
    """`Attend` over a packed sequence of prompts, one segment per sequence of the batch; fills the cache."""

    def __init__(self, cache: KeyValueCache, packed: PackedSequence, kernel: AttentionKernel):
        self.cache = cache
        self.attend = PackedAttention(packed, kernel)
        lengths_B = packed.segment_starts_S1.diff()
        self.sequences_T = torch.arange(len(lengths_B), device=lengths_B.device).repeat_interleave(lengths_B)
        self.positions_T = packed.positions_T

    def __call__(self, layer: int, query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor) -> Tensor:
        """Stores keys and values, and attends as `PackedAttention` does."""
        self.cache.store(layer, self.sequences_T, self.positions_T, key_TGW, value_TGW)
        return self.attend(layer, query_THW, key_TGW, value_TGW)


class Extend:
    """`Attend` of one new token per sequence to itself and all tokens before it."""

    def __init__(self, cache: KeyValueCache, positions_B: Tensor):
        self.cache = cache
        self.positions_B = positions_B
        self.sequences_B = torch.arange(len(positions_B), device=positions_B.device)
        self.num_tokens = int(positions_B.max()) + 1
        seen_BL = torch.arange(self.num_tokens, device=positions_B.device) <= positions_B[:, None]
        self.seen_B11L = None if bool(seen_BL.all()) else seen_BL[:, None, None]

    def __call__(self, layer: int, query_BHW: Tensor, key_BGW: Tensor, value_BGW: Tensor) -> Tensor:
        """Returns the attention output BHW."""
        self.cache.store(layer, self.sequences_B, self.positions_B, key_BGW, value_BGW)
        keys_BGLW, values_BGLW = self.cache.read(layer, self.num_tokens)
        grouped = query_BHW.shape[1] != key_BGW.shape[1]
        out_BH1W = F.scaled_dot_product_attention(
            query_BHW[:, :, None], keys_BGLW, values_BGLW, attn_mask=self.seen_B11L, enable_gqa=grouped
        )
        return out_BH1W[:, :, 0]
