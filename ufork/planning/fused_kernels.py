"""Which operations of a pass run as one kernel each. Importable without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FusedKernels:
    """Operations that are one kernel, which reads inputs and writes results once; the others are several of torch's."""

    norms: bool = False
    mlp: bool = False
    """SwiGLU's activation and product."""
    rotary: bool = False
    depth_attention: bool = False
    loss: bool = False
    """Cross-entropy's work on logits, between its products."""


UNFUSED = FusedKernels()
"""As on a CPU, or with `train.kernels: torch`."""
FUSED = FusedKernels(norms=True, mlp=True, rotary=True, depth_attention=True, loss=True)
"""As on CUDA, with `train.kernels: auto`."""
