"""Fused kernels as they would run on a GPU, for the meta device: what each keeps for the backward pass, and returns."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ufork.model.kernels import LayerKernels
from ufork.model.layers.cross_entropy import ChunkKernels
from ufork.planning.fused_kernels import FusedKernels

_LIBRARY = torch.library.Library("meta_kernels", "FRAGMENT")


def _kernel(name: str, schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Defines an operation of the meta device, so that a trace counts it as one kernel."""
    _LIBRARY.define(f"{name}{schema}")
    _LIBRARY.impl(name, function, "Meta")
    return getattr(torch.ops.meta_kernels, name)


_rms_norm = _kernel(
    "rms_norm",
    "(Tensor x, Tensor weight) -> (Tensor, Tensor)",
    lambda x, weight: (torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)),
)
_rms_norm_backward = _kernel(
    "rms_norm_backward",
    "(Tensor gradient, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    lambda gradient, x, weight, rstd: (torch.empty_like(x), torch.empty_like(weight)),
)
_swiglu = _kernel("swiglu", "(Tensor gate, Tensor up) -> Tensor", lambda gate, up: torch.empty_like(gate))
_swiglu_backward = _kernel(
    "swiglu_backward",
    "(Tensor gradient, Tensor gate, Tensor up) -> (Tensor, Tensor)",
    lambda gradient, gate, up: (torch.empty_like(gate), torch.empty_like(up)),
)
_rotate = _kernel(
    "rotate",
    "(Tensor query, Tensor key, Tensor cos, Tensor sin) -> (Tensor, Tensor)",
    lambda query, key, cos, sin: (torch.empty_like(query), torch.empty_like(key)),
)
_attend = _kernel(
    "attend",
    "(Tensor query, Tensor key, Tensor value) -> Tensor",
    lambda query, key, value: torch.empty(query.shape, dtype=query.dtype, device=query.device),
)
_attend_backward = _kernel(
    "attend_backward",
    "(Tensor gradient, Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor, Tensor)",
    lambda gradient, *inputs: tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs),
)


_add_chunk = _kernel(
    "add_chunk",
    "(Tensor logits, Tensor columns, Tensor log_sum, Tensor picked) -> (Tensor, Tensor)",
    lambda logits, columns, log_sum, picked: (torch.empty_like(log_sum), torch.empty_like(picked)),
)
_chunk_error = _kernel(
    "chunk_error",
    "(Tensor logits, Tensor columns, Tensor log_sum, Tensor factor) -> Tensor",
    lambda logits, columns, log_sum, factor: torch.empty_like(logits),
)


class _RmsNorm(torch.autograd.Function):
    """Keeps its input and the root of each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        result, rstd = _rms_norm(x, weight)
        ctx.save_for_backward(x, weight, rstd)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _rms_norm_backward(gradient, *ctx.saved_tensors)


class _Gated(torch.autograd.Function):
    """Keeps both inputs, not the activation."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _swiglu_backward(gradient, *ctx.saved_tensors)


class _Rotated(torch.autograd.Function):
    """Keeps the angles only, which all layers share."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        return _rotate(query, key, cos, sin)

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor) -> Any:
        return *_rotate(query, key, *ctx.saved_tensors), None, None


class _DepthAttention(torch.autograd.Function):
    """Keeps queries, keys and values."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return _attend(query, key, value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _attend_backward(gradient, *ctx.saved_tensors)


def kernels_of(fused: FusedKernels) -> LayerKernels:
    """Returns the kernels of a model in which those of `fused` are one operation each."""
    plain = LayerKernels()
    chunks = ChunkKernels(add=_add_chunk, error=_chunk_error)
    return LayerKernels(
        rms_norm=(lambda x, weight, eps: _RmsNorm.apply(x, weight)) if fused.norms else plain.rms_norm,
        gate=_Gated.apply if fused.mlp else plain.gate,
        rotary=_Rotated.apply if fused.rotary else plain.rotary,
        depth_attention=_DepthAttention.apply if fused.depth_attention else plain.depth_attention,
        chunks=chunks if fused.loss else plain.chunks,
    )
