"""NVIDIA apex's fused kernels, where the genuine apex is installed with its compiled extensions.

The package named apex on PyPI is an unrelated web toolkit, and NVIDIA apex can be installed without its CUDA
extensions, in which case it fails only when a kernel is called. This module therefore looks for the
compiled extension and the kernel.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ApexKernel:
    """Location of a fused kernel."""

    module: str
    name: str
    extension: str
    """Compiled module that the kernel calls."""


RMS_NORM = ApexKernel("apex.normalization.fused_layer_norm", "fused_rms_norm_affine", "fused_layer_norm_cuda")
FUSED_ADAM = ApexKernel("apex.optimizers", "FusedAdam", "amp_C")


def find_apex_kernel(kernel: ApexKernel) -> Callable[..., Any] | None:
    """Returns the kernel, or None where apex is absent, not compiled, or another package of the same name."""
    try:
        importlib.import_module(kernel.extension)
        return getattr(importlib.import_module(kernel.module), kernel.name)
    except (ImportError, AttributeError):
        return None
