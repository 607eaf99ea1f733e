"""What a CUDA device can do: by its compute capability, by running a kernel on it, by what torch says of its memory."""

import re

import torch

from ufork.errors import first_line

AMPERE, HOPPER = 8, 9
"""Major compute capabilities: the oldest that FlashAttention-2 supports, and the only one FlashAttention-3 does."""
NATIVE_BF16_CAPABILITY = AMPERE
"""First major compute capability that computes bf16 natively; older devices emulate it."""
_LINK = re.compile(r"\s*See documentation for Memory Management.*")


def computes_bf16(device: torch.device) -> bool:
    """Whether a CUDA device computes bf16 natively."""
    major, _ = torch.cuda.get_device_capability(device)
    return major >= NATIVE_BF16_CAPABILITY


def run_kernel(device: torch.device) -> None:
    """Runs a small kernel on a CUDA device and waits for it: a device that torch lists may still be of no use.

    Raises:
        RuntimeError: this torch has no kernels for the device, or the device or its driver fails.
    """
    torch.ones(1, device=device).add_(1).item()


def memory_figures(error: torch.OutOfMemoryError) -> str:
    """Returns how much memory was asked for, is free and is in use, in torch's words."""
    return _LINK.sub("", first_line(error)).removeprefix("CUDA out of memory. ")
