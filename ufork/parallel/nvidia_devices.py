"""Whether this machine has NVIDIA devices, and whether the user has turned them off. Importable without torch.

Nothing here initializes CUDA, which would make it unusable in forked processes.
"""

import ctypes
from collections.abc import Mapping
from pathlib import Path

DEVICE_FILES = Path("/dev")
NVML_LIBRARY = "libnvidia-ml.so.1"


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
