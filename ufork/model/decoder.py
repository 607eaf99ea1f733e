"""A decoder layer as in Qwen2 (arXiv 2407.10671) or Qwen3 (arXiv 2505.09388): grouped-query attention and SwiGLU.

Shapes: T tokens, D hidden size, H query heads, G key and value heads, W features of a head, F intermediate size.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ufork.model.config import ModelConfig
from ufork.model.layers.attention import Attend
from ufork.model.layers.normalization import RMSNorm
from ufork.model.layers.rotary import Rotary


class Attention(nn.Module):
    """Projections around an `Attend`; the number of heads follows from the weights, so tensor-parallel shards work."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.hidden_size, config.attention_size, bias=config.attention_bias)
        self.key = nn.Linear(config.hidden_size, config.key_value_size, bias=config.attention_bias)
        self.value = nn.Linear(config.hidden_size, config.key_value_size, bias=config.attention_bias)
        self.query_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.use_qk_norm else None
        self.key_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.use_qk_norm else None
        self.out = nn.Linear(config.attention_size, config.hidden_size, bias=False)

    def forward(self, hidden_TD: Tensor, layer: int, rotary: Rotary, attend: Attend) -> Tensor:
        """Maps TD to TD."""
        query_THW, key_TGW, value_TGW = (
            projection(hidden_TD).unflatten(-1, (-1, self.head_dim))
            for projection in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query_THW, key_TGW = self.query_norm(query_THW), self.key_norm(key_TGW)
        query_THW, key_TGW = rotary(query_THW, key_TGW)
        mixed_THW = attend(layer, query_THW, key_TGW, value_TGW)
        return self.out(mixed_THW.flatten(1))


def gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Returns silu(gate) * up."""
    return F.silu(gate_TF) * up_TF


GateKernel = Callable[[Tensor, Tensor], Tensor]
"""(gate TF, up TF) -> silu(gate) * up; may use the memory of its arguments."""


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.multiply: GateKernel = gated

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Maps TD to TD."""
        return self.down(self.multiply(self.gate(hidden_TD), self.up(hidden_TD)))


class DecoderLayer(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_TD: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        """Maps TD to TD. `layer` numbers the layers along a task's path, which a key-value cache needs."""
        hidden_TD = hidden_TD + self.attention(self.attention_norm(hidden_TD), self.layer, rotary, attend)
        return hidden_TD + self.mlp(self.mlp_norm(hidden_TD))
