"""Whether this machine has NVIDIA devices, and whether the user has turned them off. Importable without torch.

Nothing here initializes CUDA, which would make it unusable in forked processes.
"""

import ctypes
from collections.abc import Mapping
from pathlib import Path

DEVICE_FILES = Path("/dev")
NVML_LIBRARY = "libnvidia-ml.so.1"
CUDA_QUEUES = "32"
"""Hardware queues of a CUDA device (CUDA_DEVICE_MAX_CONNECTIONS, 8 by default, at most 32).

Every pair of ranks, every group and ZeRO's gathers have a stream of their own. Streams that share a queue wait for
each other, so with few queues a transfer that waits for its peer holds up gathers that could run. megatron-core
recommends 1, which makes a collective start before the product that it overlaps with; it needs that for speed only.
"""
BROKEN_DEVICE = (
    r"CUDA error: (uncorrectable|hardware|unspecified launch failure|unknown error|Invalid access of peer GPU memory"
    r"|CUDA-capable device\(s\) is/are busy|CUDA driver version is insufficient|system has unsupported display driver"
    r"|system not yet initialized)"
)
"""Pattern of CUDA's errors (cudaGetErrorString) that are due to a device or its driver, and not to a program."""


def has_cuda_device() -> bool:
    """Whether this machine has an NVIDIA device, hidden from CUDA or not.

    Looks for the driver's device files, which never blocks. Where there are none, as under WSL2, asks the driver's
    management library, as torch does; importing torch takes seconds.
    """
    return any(DEVICE_FILES.glob("nvidia[0-9]*")) or _count_by_nvml() > 0


def cpu_request(environment: Mapping[str, str]) -> str | None:
    """Returns the variable by which the user asks for the CPU although there are NVIDIA devices; None without one.

    An empty CUDA_VISIBLE_DEVICES, or "-1" in it, hides all devices. DS_ACCELERATOR=cpu makes DeepSpeed use the CPU.
    """
    if environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']}"
    return "DS_ACCELERATOR=cpu" if environment.get("DS_ACCELERATOR") == "cpu" else None


def uses_cuda(environment: Mapping[str, str]) -> bool:
    """Whether ranks started with `environment` take CUDA devices: the machine has some, and none are turned off."""
    return cpu_request(environment) is None and has_cuda_device()


def _count_by_nvml() -> int:
    """Returns the devices that the driver knows; 0 without a driver, or with one that fails."""
    try:
        nvml = ctypes.CDLL(NVML_LIBRARY)
        count = ctypes.c_uint(0)
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return 0
        nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no such library, or one without these functions
        return 0
    return count.value
