"""Tensor parallelism (arXiv 1909.08053), applied to a plain model by a table of swaps.

    plain layer with whole weights -> megatron-core's layer with this rank's tp shard, or the tp shard in place

A block (attention, MLP) is column-parallel products, work on the shard, and a row-parallel product: its output is
summed over the ranks in the forward pass, and its input's gradient in the backward pass, once per block and not once
per product. Heads are partitioned over the vocabulary. Shards are cut from whole weights, so weights do not depend on
tp.

Under sequence parallelism (arXiv 2205.05198) the activations between the decoder's blocks are partitioned over tokens:
a block gathers its input and scatters the sum of its output, and gradients of norms, which see some tokens only, are
summed.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from ufork.model.decoder import Attention, DecoderLayer, SwiGLU
from ufork.model.layers.normalization import RMSNorm
from ufork.model.rq_head import DepthAttention, DepthBlock, RqHead
from ufork.model.text_head import TextHead
from ufork.model.unifork import DecoderStack, UniFork
from ufork.parallel.engine.vocabulary_parallel import VocabularyShard
from ufork.parallel.layout_checks import require_divisible_sizes

BLOCKS: dict[type[nn.Module], dict[str, str]] = {
    Attention: {"query": "column", "key": "column", "value": "column", "out": "row"},
    SwiGLU: {"gate": "column", "up": "column", "down": "row"},
    DepthAttention: {"query": "column", "key": "column", "value": "column", "mix": "row"},
    DepthBlock: {"mlp_up": "column", "mlp_down": "row"},
}
"""Dimension that each product is partitioned over, by owning module: outputs (column) or inputs (row)."""

ENTRANCES: dict[type[nn.Module], str] = {DepthAttention: "widen", DepthBlock: "mlp_norm"}
"""The submodule whose output a block's column-parallel products read, where they do not read the block's input."""

PER_HEAD_NORMS = ("query_norm", "key_norm")
"""Norms inside of attention blocks: all heads share their weights, whose gradients are summed over the ranks' heads."""


class ColumnParallel(ColumnParallelLinear):
    """Computes some outputs of a product; the block, not this layer, sums the gradient of its input."""

    def forward(self, values: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs / tp]."""
        return super().forward(values)[0]


class RowParallel(RowParallelLinear):
    """Computes a product over some of its inputs, and sums the outputs over the ranks."""

    def forward(self, values: Tensor) -> Tensor:
        """[..., inputs / tp] -> [..., outputs]."""
        return super().forward(values)[0]


def apply_tensor_parallel(
    model: UniFork, group: dist.ProcessGroup, *, sequence_parallel: bool = False
) -> dict[str, int]:
    """Replaces the whole weights of `model` by this rank's tp shards, in place.

    Args:
        model: the modules of one stage.
        group: the ranks of a replica.
        sequence_parallel: whether the decoder layers' activations are partitioned over tokens too.

    Returns:
        by name, the dimension along which a parameter is partitioned; parameters that are not are absent.

    Raises:
        ConfigError: the number of ranks does not divide a size of the model.
    """
    has_rq_head = any(isinstance(module, RqHead) for module in model.modules())
    require_divisible_sizes(group.size(), model.config, model.dimensions, has_rq_head=has_rq_head)
    partitioner = _Partitioner(group, sequence_parallel=sequence_parallel)
    for module in list(model.modules()):
        for kind, products in BLOCKS.items():
            if isinstance(module, kind):
                partitioner.partition_block(module, products)
    partitioner.partition_vocabulary(model)
    if sequence_parallel:
        partitioner.partition_tokens(model)
    dims = partitioner.dims
    return {name: dims[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in dims}


class _Partitioner:
    """Makes this rank's tp shards and records the partitioned dimension in `dims`, by the parameter's id."""

    def __init__(self, group: dist.ProcessGroup, *, sequence_parallel: bool):
        self.group, self.sequence_parallel = group, sequence_parallel
        self.dims: dict[int, int] = {}

    def partition_block(self, block: nn.Module, products: dict[str, str]) -> None:
        """Swaps a block's products, and sums its input's gradient once for all of them."""
        sequence_parallel = self.sequence_parallel and isinstance(block, Attention | SwiGLU)
        for name, how in products.items():
            swap = self._column if how == "column" else self._row
            setattr(block, name, swap(getattr(block, name), sequence_parallel))
        enter: Callable[[Tensor], Tensor] = self._gather_tokens if sequence_parallel else self._enter
        entrance = ENTRANCES.get(type(block))
        if entrance:
            getattr(block, entrance).register_forward_hook(lambda module, inputs, output: enter(output))
        else:
            block.register_forward_pre_hook(lambda module, inputs: (enter(inputs[0]), *inputs[1:]))
        for name in PER_HEAD_NORMS:
            if isinstance(norm := getattr(block, name, None), RMSNorm):
                norm.weight.register_hook(self._summed)

    def partition_vocabulary(self, model: UniFork) -> None:
        """Partitions embedding and heads; a tied head keeps sharing the embedding's weight."""
        whole_embedding = model.trunk.token_embedding.weight if model.trunk else None
        if model.trunk:
            model.trunk.token_embedding = self._embedding(model.trunk.token_embedding)
        for module in model.modules():
            if isinstance(module, TextHead):
                tied = model.trunk and module.weight is whole_embedding
                shared: Any = model.trunk.token_embedding.weight if tied else None
                module.weight = self._sharded(module.weight, 0) if shared is None else shared
                module.vocabulary = self._vocabulary(len(module.weight))
            elif isinstance(module, RqHead):
                module.out.weight = self._sharded(module.out.weight, 0)
                module.out.bias = self._sharded(module.out.bias, 0)
                module.vocabulary = self._vocabulary(len(module.out.weight))

    def partition_tokens(self, model: UniFork) -> None:
        """Scatters the input of decoder stacks, and sums the gradients of norms, which see some tokens only."""
        for module in model.modules():
            if isinstance(module, DecoderStack):
                module.register_forward_pre_hook(lambda module, inputs: (self._scatter_tokens(inputs[0]), *inputs[1:]))
            elif isinstance(module, DecoderLayer):
                for norm in (module.attention_norm, module.mlp_norm):
                    norm.weight.register_hook(self._summed)

    def _enter(self, values: Tensor) -> Tensor:
        return copy_to_tensor_model_parallel_region(values, self.group)

    def _gather_tokens(self, values: Tensor) -> Tensor:
        return gather_from_sequence_parallel_region(values, True, self.group)

    def _scatter_tokens(self, values: Tensor) -> Tensor:
        return scatter_to_sequence_parallel_region(values, self.group)

    def _summed(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=self.group)
        return gradient

    def _config(self, *, sequence_parallel: bool = False) -> ModelParallelConfig:
        return ModelParallelConfig(
            tensor_model_parallel_size=self.group.size(),
            sequence_parallel=sequence_parallel,
            use_cpu_initialization=True,
            perform_initialization=False,
            params_dtype=torch.float32,
        )

    def _column(self, plain: nn.Linear, sequence_parallel: bool) -> ColumnParallel:
        layer = ColumnParallel(
            plain.in_features,
            plain.out_features,
            bias=plain.bias is not None,
            disable_grad_reduce=True,
            config=self._config(),
            **self._common(),
        )
        return self._filled(layer, plain, weight_dim=0, bias_dim=0)

    def _row(self, plain: nn.Linear, sequence_parallel: bool) -> RowParallel:
        layer = RowParallel(
            plain.in_features,
            plain.out_features,
            bias=plain.bias is not None,
            input_is_parallel=True,
            skip_bias_add=False,
            config=self._config(sequence_parallel=sequence_parallel),
            **self._common(),
        )
        return self._filled(layer, plain, weight_dim=1, bias_dim=None)

    def _embedding(self, plain: nn.Embedding) -> VocabParallelEmbedding:
        layer = VocabParallelEmbedding(
            plain.num_embeddings, plain.embedding_dim, config=self._config(), **self._common()
        )
        return self._filled(layer, plain, weight_dim=0, bias_dim=None)

    def _common(self) -> dict[str, Any]:
        return {"init_method": nn.init.zeros_, "tp_group": self.group}

    def _filled(self, layer: Any, plain: Any, *, weight_dim: int, bias_dim: int | None) -> Any:
        with torch.no_grad():
            layer.weight.copy_(self._shard(plain.weight, weight_dim))
            self.dims[id(layer.weight)] = weight_dim
            if getattr(plain, "bias", None) is not None:
                layer.bias.copy_(plain.bias if bias_dim is None else self._shard(plain.bias, bias_dim))
                if bias_dim is not None:
                    self.dims[id(layer.bias)] = bias_dim
        return layer

    def _sharded(self, whole: Tensor, dim: int) -> nn.Parameter:
        parameter = nn.Parameter(self._shard(whole.detach(), dim).clone())
        self.dims[id(parameter)] = dim
        return parameter

    def _shard(self, whole: Tensor, dim: int) -> Tensor:
        return whole.chunk(self.group.size(), dim)[self.group.rank()]

    def _vocabulary(self, num_rows: int) -> VocabularyShard:
        return VocabularyShard(self.group, self.group.rank() * num_rows)
