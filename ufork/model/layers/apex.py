"""NVIDIA apex's fused kernels, where the genuine apex is installed with its compiled parts.

PyPI's package of that name is an unrelated web toolkit, and apex can be installed without its CUDA extensions, which it
then misses only when a kernel is called. So apex is known by what it provides.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ApexKernel:
    """One that ufork would use."""

    module: str
    name: str
    extension: str
    """The compiled module that it calls."""


RMS_NORM = ApexKernel("apex.normalization.fused_layer_norm", "fused_rms_norm_affine", "fused_layer_norm_cuda")
FUSED_ADAM = ApexKernel("apex.optimizers", "FusedAdam", "amp_C")


def find_apex_kernel(kernel: ApexKernel) -> Callable[..., Any] | None:
    """The kernel, or None where apex is absent, not compiled, or another package of the same name."""
    try:
        importlib.import_module(kernel.extension)
        return getattr(importlib.import_module(kernel.module), kernel.name)
    except (ImportError, AttributeError):
        return None
