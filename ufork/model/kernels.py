"""Which kernels a model uses on a device: chosen once where the model is built, and logged.

    device, dtype -> choose_kernels -> LayerKernels -> use_kernels sets them in the model's modules

On CUDA fused kernels take the place of plain torch, in this order, as far as they are installed and run:

    RMSNorm                     NVIDIA apex, torch's fused kernel
    rotary embedding, SwiGLU    liger-kernel, torch.compile
    depth attention, cross-entropy's work between its products    torch.compile

Everything that liger-kernel and torch.compile generate needs triton and a C compiler. Whether they work is found out by
running one small function, before training starts.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ufork.model.decoder import GateKernel, SwiGLU, gated
from ufork.model.layers.apex import RMS_NORM, find_apex_kernel
from ufork.model.layers.attention import find_attention_kernel
from ufork.model.layers.compiled import compiled
from ufork.model.layers.cross_entropy import (
    PLAIN_CHUNKS,
    ChunkKernels,
    add_chunk,
    elementwise_chunk_error,
)
from ufork.model.layers.depth_attention import DepthKernel, depth_attention, elementwise_depth_attention
from ufork.model.layers.liger import liger_gated, liger_rotate
from ufork.model.layers.linear import PRODUCTS, LinearKernel, OneDnnLinear
from ufork.model.layers.normalization import NormKernel, RMSNorm, fused_rms_norm, rms_norm
from ufork.model.layers.rotary import RotaryKernel, rotate
from ufork.model.rq_head import DepthAttention, RqHead
from ufork.model.text_head import TextHead
from ufork.model.unifork import DecoderStack

log = logging.getLogger(__name__)

KernelChoice = Literal["auto", "torch"]
"""`torch`: plain torch, nothing generated and no other package."""
PLAIN, LIGER, COMPILED = "plain torch", "liger-kernel", "torch.compile"


@dataclass(frozen=True, kw_only=True)
class LayerKernels:
    """The functions that a model's modules call, and the names of their makers."""

    rms_norm: NormKernel = rms_norm
    rotary: RotaryKernel = rotate
    gate: GateKernel = gated
    depth_attention: DepthKernel = depth_attention
    chunks: ChunkKernels = PLAIN_CHUNKS
    names: tuple[str, str, str] = (PLAIN, PLAIN, PLAIN)
    """Of RMSNorm; of rotary embedding and SwiGLU; of depth attention and cross-entropy."""

    def describe(self) -> dict[str, str]:
        """Returns the names by operation."""
        operations = ("RMSNorm", "rotary embedding, SwiGLU", "depth attention, cross-entropy")
        return dict(zip(operations, self.names, strict=True))


def describe_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Returns, by operation, the kernel that a model on `device` in `dtype` uses; for attention, with the reason."""
    return {"attention": str(find_attention_kernel(device, dtype)), **_find_kernels(device).describe()}


def choose_kernels(device: torch.device, choice: KernelChoice = "auto") -> LayerKernels:
    """Returns the fastest kernels that run on `device`, plain torch on CPUs, and logs them."""
    kernels = _find_kernels(device) if choice == "auto" else LayerKernels()
    for operation, name in kernels.describe().items():
        log.info("%s: %s", operation, name)
    return kernels


def use_kernels(model: nn.Module, kernels: LayerKernels) -> None:
    """Sets `kernels` in the modules of `model`."""
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.kernel = kernels.rms_norm
        elif isinstance(module, DecoderStack):
            module.rotary_kernel = kernels.rotary
        elif isinstance(module, SwiGLU):
            module.multiply = kernels.gate
        elif isinstance(module, DepthAttention):
            module.attend = kernels.depth_attention
        elif isinstance(module, RqHead | TextHead):
            module.chunk_kernels = kernels.chunks


def use_linear(model: nn.Module, kernel: LinearKernel) -> None:
    """Switches the matrix products of linear layers and heads of `model` to `kernel`, in place."""
    for module in model.modules():
        if kernel == "onednn" and type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
        elif isinstance(module, RqHead | TextHead):
            module.products = PRODUCTS[kernel]


@functools.cache
def _find_kernels(device: torch.device) -> LayerKernels:
    if device.type != "cuda":
        return LayerKernels()
    apex = find_apex_kernel(RMS_NORM)
    no_liger = _fault_of(liger_gated, device)
    no_compiler = _fault_of(compiled_kernels().gate, device)
    norm: NormKernel = fused_rms_norm
    norm_name = "torch's fused kernel"
    if apex:
        norm, norm_name = functools.partial(_apex_rms_norm, apex), "NVIDIA apex's fused kernel"
    compiled_or_plain = LayerKernels() if no_compiler else compiled_kernels()
    compiled_name = f"{PLAIN}, since torch.compile fails ({no_compiler})" if no_compiler else COMPILED
    return LayerKernels(
        rms_norm=norm,
        rotary=compiled_or_plain.rotary if no_liger else liger_rotate,
        gate=compiled_or_plain.gate if no_liger else liger_gated,
        depth_attention=compiled_or_plain.depth_attention,
        chunks=compiled_or_plain.chunks,
        names=(
            norm_name,
            f"{compiled_name}, without liger-kernel ({no_liger})" if no_liger else LIGER,
            compiled_name,
        ),
    )


@functools.cache
def compiled_kernels() -> LayerKernels:
    """Returns torch.compile's kernels, of which each is compiled at its first call."""
    return LayerKernels(
        rotary=compiled(rotate),
        gate=compiled(gated),
        depth_attention=compiled(elementwise_depth_attention),
        chunks=ChunkKernels(
            add=compiled(add_chunk, variable_dims=2), error=compiled(elementwise_chunk_error, variable_dims=2)
        ),
        names=(PLAIN, COMPILED, COMPILED),
    )


def _apex_rms_norm(
    fused: Callable[..., torch.Tensor], hidden_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> torch.Tensor:
    return fused(hidden_TD, weight_D, weight_D.shape, eps)


def _fault_of(gate: Callable[..., Any], device: torch.device) -> str | None:
    """Returns why a gate kernel does not run forward and backward on `device`, in one line, or None."""
    try:
        gate_TF, up_TF = (torch.ones(4, 8, device=device, requires_grad=True) for _ in range(2))
        gate(gate_TF * 1, up_TF * 1).sum().backward()
    except Exception as error:  # of triton, its compiler or the driver: whatever it is, plain torch remains
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None
