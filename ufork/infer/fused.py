"""Fewer and larger matrix products for drawing and answering on CPUs: replaces layers of a loaded model.

    UniFork -> fuse_products -> the same model, whose decoder layers, RQ blocks and heads compute with `Product`

A decoding step multiplies a few rows by all weights. Its time is that of reading the weights, and of starting each
operator. Products of one input are therefore joined (query, key and value), products that follow each other with
nothing between them are multiplied in advance (`widen` with query, key and value, `mix` with `narrow`), activations and
residual sums are computed with their product, the body's norms leave their weights to the product after them, and
weights are kept in the order in which oneDNN reads them. Results differ from those of the model's own layers by
rounding, and do not depend on the number of rows.

Shapes: T tokens, D hidden size of the body, W features of a head, N heads of queries and keys, I image positions, C
depths, P hidden size of the RQ head, R rows, X inputs and O outputs of a product.
"""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ufork.model.decoder import Attention, DecoderLayer
from ufork.model.layers.attention import Attend
from ufork.model.layers.linear import ONEDNN_CAPABILITIES
from ufork.model.layers.normalization import RMSNorm, rms_norm
from ufork.model.layers.rotary import Rotary, rotated
from ufork.model.rq_head import DepthBlock, RqHead
from ufork.model.text_head import TextHead
from ufork.model.unifork import DecoderStack, UnderstandingBranch, UniFork

log = logging.getLogger(__name__)


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of `dtype` on `device` with weights in its own order: on x86 with AVX2."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() not in ONEDNN_CAPABILITIES:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def fuse_products(model: UniFork) -> None:
    """Replaces layers of `model` in place, one after the other, so that their weights are never held twice.

    Those of the text head and of the RQ head's linear layers are, since embeddings and cross-entropy read some of them.
    """
    log.info("products: oneDNN, with joined weights in its own order")
    for module in model.modules():
        if isinstance(module, DecoderStack):
            for number, layer in enumerate(module.layers):
                module.layers[number] = FusedLayer(layer)  # type: ignore[arg-type]
        elif isinstance(module, RqHead):
            for number, block in enumerate(module.blocks):
                module.blocks[number] = FusedBlock(block, len(module.depth_positions_CP))  # type: ignore[arg-type]
            for name in ("from_body", "from_codes", "out"):
                setattr(module, name, PackedLinear(getattr(module, name)))
        elif isinstance(module, UnderstandingBranch):
            module.head = FusedTextHead(module.head)


class Product(nn.Module):
    """Computes x weight^T + bias, with the weights in oneDNN's order."""

    def __init__(self, weight_OX: Tensor, bias_O: Tensor | None = None):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OX)
        self.bias_O = None if bias_O is None else bias_O.detach()

    def forward(self, x_RX: Tensor, activation: str = "none") -> Tensor:
        """Maps [..., X] to [..., O]; `activation`: none, swish (SiLU) or gelu."""
        return torch.ops.mkldnn._linear_pointwise.default(x_RX, self.packed, self.bias_O, activation, [], "none")

    def add(self, x_RX: Tensor, other_RO: Tensor) -> Tensor:
        """Returns the product plus `other`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x_RX, other_RO, self.packed, self.bias_O, "add")

    def multiply(self, x_RX: Tensor, other_RO: Tensor) -> Tensor:
        """Returns the product times `other`, element by element."""
        return torch.ops.mkldnn._linear_pointwise.binary(x_RX, other_RO, self.packed, self.bias_O, "mul")


class FusedLayer(nn.Module):
    """A `DecoderLayer` of five products; the weights of its norms are part of those of the products after them."""

    def __init__(self, layer: DecoderLayer):
        super().__init__()
        attention, mlp = layer.attention, layer.mlp
        projections = (attention.query, attention.key, attention.value)
        self.layer, self.head_dim = layer.layer, attention.head_dim
        self.num_heads = [linear.out_features // self.head_dim for linear in projections]
        hidden_size, self.eps = attention.query.in_features, layer.attention_norm.eps
        self.shortest = torch.tensor(math.sqrt(hidden_size * self.eps))
        weight, bias = _joined(projections)
        self.query_key_value = Product(_after_norm(layer.attention_norm, weight), bias)
        self.query_key_norms_NW = _joined_norms(attention, *self.num_heads[:2])
        self.gate, self.up = (Product(_after_norm(layer.mlp_norm, linear.weight)) for linear in (mlp.gate, mlp.up))
        self.out, self.down = Product(attention.out.weight), Product(mlp.down.weight)

    def forward(self, hidden_TD: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        """Maps TD to TD."""
        heads = self.query_key_value(self._unit(hidden_TD)).unflatten(-1, (-1, self.head_dim))
        num_queries, num_keys, num_values = self.num_heads
        query_key, value_TGW = heads.split((num_queries + num_keys, num_values), dim=1)
        if self.query_key_norms_NW is not None:
            query_key = rms_norm(query_key, self.query_key_norms_NW, self.eps)
        query_key = rotated(query_key, rotary.cos_TW[:, None], rotary.sin_TW[:, None])
        query_THW, key_TGW = query_key.split((num_queries, num_keys), dim=1)
        mixed_THW = attend(self.layer, query_THW, key_TGW, value_TGW)
        hidden_TD = self.out.add(mixed_THW.flatten(1), hidden_TD)
        unit_TD = self._unit(hidden_TD)
        gated_TF = self.up.multiply(unit_TD, self.gate(unit_TD, "swish"))
        return self.down.add(gated_TF, hidden_TD)

    def _unit(self, hidden_TD: Tensor) -> Tensor:
        """Returns x / sqrt(|x|^2 + D eps): RMSNorm without its weight and the factor sqrt(D), in fewer operators."""
        length_T1 = torch.linalg.vector_norm(hidden_TD, dim=-1, keepdim=True, dtype=torch.float32)
        return (hidden_TD / torch.hypot(length_T1, self.shortest)).to(hidden_TD.dtype)


class FusedBlock(nn.Module):
    """A `DepthBlock` of four products, without dropout."""

    def __init__(self, block: DepthBlock, num_depths: int):
        super().__init__()
        attention = block.attention
        self.num_depths, self.head_dim, self.attend = num_depths, attention.head_dim, attention.attend
        self.attention_norm, self.mlp_norm = block.attention_norm, block.mlp_norm
        weight, bias = _joined((attention.query, attention.key, attention.value))
        assert bias is not None
        self.query_key_value = Product(*_chained(attention.widen, weight, bias))
        self.narrow = Product(*_chained(attention.mix, attention.narrow.weight, attention.narrow.bias))
        self.mlp_up, self.mlp_down = (Product(linear.weight, linear.bias) for linear in (block.mlp_up, block.mlp_down))

    def forward(self, hidden_ICP: Tensor, past: list[Tensor] | None = None, seed: int = 0) -> Tensor:
        """Maps ICP to ICP as `DepthBlock` does in evaluation, where `seed` has no effect.

        `past` holds the keys and values of earlier depths, and the memory for those of all.
        """
        heads = self.query_key_value(self.attention_norm(hidden_ICP)).unflatten(-1, (3, -1, self.head_dim))
        if past is None:
            mixed = self.attend(*heads.unbind(2))
        else:
            mixed = self._attend_to_past(heads, past)
        hidden_ICP = self.narrow.add(mixed.flatten(2), hidden_ICP)
        return self.mlp_down.add(self.mlp_up(self.mlp_norm(hidden_ICP), "gelu"), hidden_ICP)

    def _attend_to_past(self, heads_I13HW: Tensor, past: list[Tensor]) -> Tensor:
        """Returns the attention output I1HW of the next depth, whose queries, keys and values are given."""
        if past:
            memory_IC2HW, depth = past[1], past[0].shape[1]
        else:
            num_positions, _, _, *head_sizes = heads_I13HW.shape
            memory_IC2HW, depth = heads_I13HW.new_empty(num_positions, self.num_depths, 2, *head_sizes), 0
        memory_IC2HW[:, depth] = heads_I13HW[:, 0, 1:]
        past[:] = [memory_IC2HW[:, : depth + 1], memory_IC2HW]
        if depth == 0:
            return heads_I13HW[:, :, 2]  # all attention is to the first depth itself
        query, key, value = (x.transpose(1, 2) for x in (heads_I13HW[:, :, 0], *past[0].unbind(2)))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


class PackedLinear(nn.Module):
    """A linear layer of the RQ head as a `Product`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.product = Product(linear.weight, linear.bias)

    def forward(self, x_RX: Tensor) -> Tensor:
        """Maps [..., X] to [..., O]."""
        return self.product(x_RX)


class FusedTextHead(TextHead):
    """A `TextHead` whose logits are a `Product`."""

    def __init__(self, head: TextHead):
        super().__init__(head.weight)
        self.product = Product(head.weight)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Returns logits TV."""
        return self.product(hidden_TD)


def _joined(linears: tuple[nn.Linear, ...]) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of the linear layer that computes all of `linears`, which all have biases or none."""
    has_bias = linears[0].bias is not None
    weight_OX = torch.cat([linear.weight for linear in linears])
    return weight_OX, torch.cat([linear.bias for linear in linears]) if has_bias else None


def _joined_norms(attention: Attention, num_queries: int, num_keys: int) -> Tensor | None:
    """Returns the weights of the norms of queries and of keys, a row per head; None if there are no such norms."""
    if attention.query_norm is None or attention.key_norm is None:
        return None
    queries_HW = attention.query_norm.weight.expand(num_queries, -1)
    return torch.cat((queries_HW, attention.key_norm.weight.expand(num_keys, -1))).detach()


def _after_norm(norm: RMSNorm, weight_OD: Tensor) -> Tensor:
    """Returns the weight OD that maps `FusedLayer._unit` of a state to what `weight` maps its `norm` to."""
    return (weight_OD.float() * norm.weight.float() * math.sqrt(weight_OD.shape[1])).to(weight_OD.dtype)


def _chained(first: nn.Linear, weight_OX: Tensor, bias_O: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the linear layer that computes `first` and then the layer of `weight` and `bias`."""
    chained_OX = weight_OX.float() @ first.weight.float()
    chained_O = torch.addmv(bias_O.float(), weight_OX.float(), first.bias.float())
    return chained_OX.to(weight_OX.dtype), chained_O.to(bias_O.dtype)
