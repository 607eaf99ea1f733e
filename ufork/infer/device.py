"""Where a trained model computes, and in which precision.

    --device, --precision -> choose_device, choose_dtype -> TrainedModel.load

This is for programs that use a model in one process. Ranks that train agree on their devices (`ufork/parallel`).
"""

import logging
import re
from typing import Literal

import torch

from ufork.errors import ConfigError, first_line
from ufork.model.cuda_device import NATIVE_BF16_CAPABILITY, computes_bf16, run_kernel

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]
AUTO = "auto"


def choose_device(name: str = AUTO) -> torch.device:
    """Returns the device `name`: cpu, cuda, cuda:N, or auto, the first GPU that torch can use and otherwise the CPU.

    Raises:
        ConfigError: `name` is no such device, or torch cannot use it.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"auto|cuda(:\d{1,4})?", name):
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    device = torch.device("cuda:0" if name in (AUTO, "cuda") else name)
    trouble = _trouble_of(device)
    if not trouble:
        log.info("device: %s, %s", device, torch.cuda.get_device_name(device))
        return device
    if name == AUTO:
        log.info("device: cpu (%s)", trouble)
        return torch.device("cpu")
    if not torch.backends.cuda.is_built():
        trouble += "; install a build for CUDA (https://pytorch.org)"
    raise ConfigError(f"device {name}: {trouble}; use another device or --device cpu (`ufork doctor` shows more)")


def choose_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """Returns what a model computes in on `device`; auto is bf16 on GPUs that compute it natively, otherwise fp32.

    Raises:
        ConfigError: bf16 on a GPU that only emulates it.
    """
    if device.type != "cuda":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    native = computes_bf16(device)
    if precision == "auto":
        precision = "bf16" if native else "fp32"
    if precision == "bf16" and not native:
        major, minor = torch.cuda.get_device_capability(device)
        raise ConfigError(
            f"precision bf16: {device} has compute capability {major}.{minor} and emulates bf16, which takes"
            f" {NATIVE_BF16_CAPABILITY}.0 (Ampere) or newer; use fp32"
        )
    return torch.bfloat16 if precision == "bf16" else torch.float32


def use_device(device: torch.device) -> None:
    """Selects a GPU for the calling thread: Triton's kernels run on its current device, wherever their tensors are."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _trouble_of(device: torch.device) -> str:
    """Returns why torch cannot use the CUDA device; empty if it can."""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is a build for CPUs"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no NVIDIA GPU that it can use"
    if device.index >= (count := torch.cuda.device_count()):
        return f"this process sees {count} GPU(s), cuda:0 to cuda:{count - 1}"
    try:
        run_kernel(device)
    except RuntimeError as error:
        return first_line(error)
    return ""
