"""Which kernels a model uses on a device."""

import torch

from ufork.model.layers.attention import find_attention_kernel


def describe_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Returns, by operation, the kernel that a model on `device` in `dtype` uses, with the reason."""
    return {"attention": str(find_attention_kernel(device, dtype))}
