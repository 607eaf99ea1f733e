"""Probes that import a compiled package; each runs in a separate process (`Surroundings.ask_python`).

python -m pipelines.doctor.probes NAME -> one line of JSON
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from importlib import metadata
from types import SimpleNamespace
from typing import Any

from ufork.errors import first_line


def torch_probe() -> dict[str, Any]:
    """Returns the build of torch, and the devices that it can use or why it can use none."""
    import torch

    try:
        torch.cuda.init()
        trouble = ""
    except Exception as error:  # of many kinds: an old driver, no device, a build without CUDA
        trouble = first_line(error)
    devices = range(torch.cuda.device_count()) if not trouble else ()
    properties = [torch.cuda.get_device_properties(device) for device in devices]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "trouble": trouble,
        "devices": [f"{each.name}, {each.total_memory / 2**30:.0f} GB" for each in properties],
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
    }


def kernels_probe() -> dict[str, Any]:
    """Runs a kernel on each GPU; returns those that fail, and what training chooses for the others."""
    import torch

    from ufork.model.cuda_device import NATIVE_BF16_CAPABILITY, run_kernel
    from ufork.model.kernels import describe_kernels

    failing, capabilities = [], []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        try:
            capabilities.append(torch.cuda.get_device_capability(device))
            run_kernel(device)
        except RuntimeError as error:
            failing.append(f"{device}: {first_line(error)}")
    native = all(major >= NATIVE_BF16_CAPABILITY for major, _ in capabilities)
    dtype = torch.bfloat16 if native else torch.float32
    usable = bool(capabilities) and not failing
    return {
        "failing": failing,
        "capabilities": [f"{major}.{minor}" for major, minor in capabilities],
        "precision": "bf16" if native else "fp32",
        "kernels": describe_kernels(torch.device("cuda", 0), dtype) if usable else {},
    }


def flash_attention_probe() -> dict[str, Any]:
    """Returns flash-attn's version, and whether its kernel ran; without a GPU it does not."""
    version = importlib.import_module("flash_attn").__version__
    import torch

    if not torch.cuda.is_available():
        return {"version": version, "ran": False}
    from ufork.model.layers.attention_kernels import flash_attention

    heads_THW = torch.randn(8, 2, 64, device="cuda", dtype=torch.bfloat16)
    starts_S1 = torch.tensor([0, 3, 8], device="cuda", dtype=torch.int32)
    segments = SimpleNamespace(starts_S1=starts_S1, longest=5)  # all that the kernel reads of them
    flash_attention(heads_THW, heads_THW, heads_THW, segments)  # type: ignore[arg-type]
    torch.cuda.synchronize()
    return {"version": version, "ran": True}


def apex_probe() -> dict[str, Any]:
    """Returns which of the kernels that ufork uses the package named apex has, and whether it is NVIDIA's."""
    from ufork.model.layers.apex import FUSED_ADAM, RMS_NORM, find_apex_kernel

    kernels = [kernel.name for kernel in (RMS_NORM, FUSED_ADAM) if find_apex_kernel(kernel)]
    return {
        "kernels": kernels,
        "genuine": bool(kernels) or _can_import("apex.multi_tensor_apply"),
        "present": importlib.util.find_spec("apex") is not None,
    }


def deepspeed_probe() -> dict[str, Any]:
    """Returns DeepSpeed's version."""
    return {"version": importlib.import_module("deepspeed").__version__}


def megatron_probe() -> dict[str, Any]:
    """Returns megatron-core's version, after importing the package that ufork uses."""
    importlib.import_module("megatron.core.tensor_parallel")
    return {"version": importlib.import_module("megatron.core").__version__}


def simplejpeg_probe() -> dict[str, Any]:
    """Returns simplejpeg's version."""
    importlib.import_module("simplejpeg")
    return {"version": metadata.version("simplejpeg")}


def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # an unrelated package may raise anything
        return False
    return True


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": torch_probe,
    "kernels": kernels_probe,
    "flash_attention": flash_attention_probe,
    "apex": apex_probe,
    "deepspeed": deepspeed_probe,
    "megatron": megatron_probe,
    "simplejpeg": simplejpeg_probe,
}

if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]]()))
