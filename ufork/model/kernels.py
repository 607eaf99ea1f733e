"""Which kernels a model uses on a device."""

import torch

from ufork.model.layers.attention import find_attention_kernel

NATIVE_BF16_CAPABILITY = 8
"""First major compute capability (Ampere) that computes bf16 natively; older devices emulate it."""


def describe_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Returns, by operation, the kernel that a model on `device` in `dtype` uses, with the reason."""
    return {"attention": str(find_attention_kernel(device, dtype))}
