"""Attention over packed sequences: what a decoder layer calls, and which kernel computes it.

    query, key, value of a packed sequence + segment starts -> causal attention inside each segment

`choose_attention_kernel` decides once, where the model is built.

Shapes: T tokens of the packed sequence, H query heads, G key and value heads, W features of a head.
"""

import importlib
import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ufork.model.cuda_device import AMPERE, HOPPER
from ufork.model.layers.attention_kernels import (
    AttentionKernel,
    flash_attention,
    flash_attention_3,
    sdpa_attention,
    varlen_attention,
)
from ufork.model.layers.segments import Segments
from ufork.vocabulary import PackedSequence

log = logging.getLogger(__name__)


class Attend(Protocol):
    """The attention that a decoder layer calls; implementations decide where keys and values are kept."""

    def __call__(self, layer: int, query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, /) -> Tensor:
        """Returns THW."""
        ...


class PackedAttention:
    """`Attend` over the segments of one packed sequence."""

    def __init__(self, packed: PackedSequence, kernel: AttentionKernel):
        self.segments = Segments(packed)
        self.kernel = kernel

    def __call__(self, layer: int, query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor) -> Tensor:
        """Returns THW; all layers share the segments."""
        return self.kernel(query_THW, key_TGW, value_TGW, self.segments)


@dataclass(frozen=True)
class AttentionChoice:
    """A kernel, and what to tell the user about it."""

    kernel: AttentionKernel
    name: str
    reason: str
    remedy: str = ""
    """What to do for a faster one, on a GPU that has one."""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose_attention_kernel(device: torch.device, dtype: torch.dtype) -> AttentionKernel:
    """Returns the fastest kernel that runs on `device` in `dtype`; logs it with the reason, once per model."""
    choice = find_attention_kernel(device, dtype)
    if device.type == "cuda" and choice.kernel is sdpa_attention:
        log.warning(
            "attention: %s. Segments are padded to the longest: memory and work are those of as many segments of that"
            " length. %s",
            choice,
            choice.remedy,
        )
    else:
        log.info("attention: %s", choice)
    return choice.kernel


def find_attention_kernel(device: torch.device, dtype: torch.dtype) -> AttentionChoice:
    """Returns what `choose_attention_kernel` would choose."""
    if device.type != "cuda":
        return _padded(f"the device is {device.type}")
    if dtype not in (torch.float16, torch.bfloat16):
        return _padded(f"FlashAttention computes in half precision, not {dtype}", "Set train.precision to bf16.")
    major, minor = torch.cuda.get_device_capability(device)
    if major < AMPERE:
        return _padded(f"FlashAttention needs compute capability 8.0, this GPU has {major}.{minor}")
    candidates = [
        (flash_attention, "flash_attn", "flash_attn_varlen_func", "flash-attn 2"),
        (varlen_attention, "torch.nn.attention.varlen", "varlen_attn", "FlashAttention-2 of torch"),
    ]
    if major == HOPPER:
        candidates.insert(0, (flash_attention_3, "flash_attn_interface", "flash_attn_varlen_func", "FlashAttention-3"))
    faults: list[str] = []
    for kernel, module, function, name in candidates:
        fault = _fault_of(module, function)
        if fault is None:
            return AttentionChoice(kernel, f"{name}, varlen kernel", "; ".join(faults) or f"{module} is installed")
        faults.append(fault)
    return _padded("; ".join(faults), "Install torch 2.13 or newer with CUDA, or flash-attn.")


def _padded(reason: str, remedy: str = "") -> AttentionChoice:
    return AttentionChoice(sdpa_attention, "torch scaled_dot_product_attention, padded segments", reason, remedy)


def _fault_of(module: str, function: str) -> str | None:
    """Returns why a kernel cannot be used, or None."""
    try:
        getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, OSError) as error:  # OSError: a library that was built for another torch
        return f"{module}: {error}"
    if module.startswith("torch.") and not torch.backends.cuda.is_flash_attention_available():
        return "this torch was built without FlashAttention"
    return None
