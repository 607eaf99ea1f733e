"""The generation branch's head: a small causal transformer over the residual depths of one image position.

    body state h, codes of the position -> [in(h), in(codes to depth 1), ..., in(to depth C-1)] -> blocks -> logits

Sizes and order follow the release (specification, section 6; VILA-U, arXiv 2409.04429; RQ-Transformer, arXiv
2203.01941).

Shapes: I image positions, C codes per position, K codebook size, E features of a code, D hidden size of the body, P
hidden size of the head, A its attention size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ufork.model.config import Dimensions, RqHeadConfig
from ufork.model.layers.cross_entropy import PLAIN_CHUNKS, WHOLE_VOCABULARY, Vocabulary, sum_cross_entropy
from ufork.model.layers.depth_attention import DepthKernel, depth_attention
from ufork.model.layers.dropout import SeededDropout
from ufork.model.layers.linear import TORCH_PRODUCTS


class DepthAttention(nn.Module):
    """Causal attention over depths, computed at `attention_size` features."""

    def __init__(self, config: RqHeadConfig):
        super().__init__()
        self.head_dim = config.attention_size // config.num_attention_heads
        self.widen = nn.Linear(config.hidden_size, config.attention_size)
        self.query = nn.Linear(config.attention_size, config.attention_size)
        self.key = nn.Linear(config.attention_size, config.attention_size)
        self.value = nn.Linear(config.attention_size, config.attention_size)
        self.mix = nn.Linear(config.attention_size, config.attention_size)
        self.narrow = nn.Linear(config.attention_size, config.hidden_size)
        self.attend: DepthKernel = depth_attention

    def forward(self, hidden_ICP: Tensor, past: list[Tensor] | None = None) -> Tensor:
        """Maps ICP to ICP. With `past`, the keys and values of earlier depths, C is 1: the next depth."""
        wide_ICA = self.widen(hidden_ICP)
        query, key, value = (
            projection(wide_ICA).unflatten(-1, (-1, self.head_dim)) for projection in (self.query, self.key, self.value)
        )
        if past is None:
            mixed = self.attend(query, key, value)
        else:
            mixed = depth_attention(query, *_extended(past, key, value))
        return self.narrow(self.mix(mixed.flatten(2)))


def _extended(past: list[Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    if past:
        key, value = torch.cat((past[0], key), dim=1), torch.cat((past[1], value), dim=1)
    past[:] = [key, value]
    return key, value


class DepthBlock(nn.Module):
    """Pre-normalised attention and a 4x GELU MLP, each added to the residual stream."""

    def __init__(self, config: RqHeadConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.attention = DepthAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size)
        self.mlp_up = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.mlp_down = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.dropout = SeededDropout(config.dropout)

    def forward(self, hidden_ICP: Tensor, past: list[Tensor] | None = None, seed: int = 0) -> Tensor:
        """Maps ICP to ICP; in training, `seed` selects the dropout mask."""
        attended = self.attention(self.attention_norm(hidden_ICP), past)
        hidden_ICP = hidden_ICP + self.dropout(attended, 2 * seed)
        transformed = self.mlp_down(F.gelu(self.mlp_up(self.mlp_norm(hidden_ICP))))
        return hidden_ICP + self.dropout(transformed, 2 * seed + 1)


class RqHead(nn.Module):
    """Predicts the codes of image positions, each depth given those before it."""

    def __init__(self, config: RqHeadConfig, dimensions: Dimensions, body_size: int):
        super().__init__()
        self.from_body = nn.Linear(body_size, config.hidden_size)
        self.from_codes = nn.Linear(dimensions.code_width, config.hidden_size)
        self.depth_positions_CP = nn.Parameter(torch.zeros(dimensions.codes_per_position, config.hidden_size))
        self.blocks = nn.ModuleList(DepthBlock(config) for _ in range(config.num_blocks))
        self.out_norm = nn.LayerNorm(config.hidden_size)
        self.out = nn.Linear(config.hidden_size, dimensions.codebook_size)
        self.vocabulary: Vocabulary = WHOLE_VOCABULARY
        self.chunk_kernels = PLAIN_CHUNKS
        self.products = TORCH_PRODUCTS

    def forward(self, hidden_ID: Tensor, code_sums_ICE: Tensor, codes_IC: Tensor, seed: int = 0) -> Tensor:
        """Returns the sum of cross-entropies over positions and depths, a scalar in fp32 (teacher-forced)."""
        states_NP = self.states(hidden_ID, code_sums_ICE, seed).flatten(0, 1)
        return sum_cross_entropy(
            states_NP,
            self.out.weight,
            self.out.bias,
            codes_IC.flatten(),
            self.vocabulary,
            self.chunk_kernels,
            self.products,
        )

    def states(self, hidden_ID: Tensor, code_sums_ICE: Tensor, seed: int = 0) -> Tensor:
        """Returns states ICP, the inputs of `out`, for all depths; in training, `seed` selects the dropout masks."""
        code_sums_ICE = code_sums_ICE.to(hidden_ID.dtype)  # the codebook stays in fp32
        inputs = (self.from_body(hidden_ID)[:, None], self.from_codes(code_sums_ICE[:, :-1]))
        state_ICP = torch.cat(inputs, dim=1) + self.depth_positions_CP
        for number, block in enumerate(self.blocks):
            state_ICP = block(state_ICP, seed=seed * len(self.blocks) + number)
        return self.out_norm(state_ICP)

    def next_logits(self, entering_IX: Tensor, depth: int, past: list[list[Tensor]]) -> Tensor:
        """Returns logits IK of one depth from its input: the body state at depth 0, then the sum of the earlier codes.

        Args:
            entering_IX: ID at depth 0, IE at the others.
            depth: index from 0.
            past: one list per block, empty at depth 0: keys and values of earlier depths, extended in place.
        """
        project = self.from_codes if depth else self.from_body
        state_I1P = (project(entering_IX.to(project.weight.dtype)) + self.depth_positions_CP[depth])[:, None]
        for block, block_past in zip(self.blocks, past, strict=True):
            state_I1P = block(state_I1P, block_past)
        return self.out(self.out_norm(state_I1P[:, 0]))
