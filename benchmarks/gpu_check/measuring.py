"""Time, memory and error of something that runs on a device."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.profiling import profiled
from ufork.errors import first_line
from ufork.model.cuda_device import computes_bf16

GB = 1e9


def device_of(*, cpu: bool) -> torch.device:
    """Returns the device that a part works on.

    Raises:
        RuntimeError: there is no CUDA device that torch can use.
    """
    if cpu:
        torch.set_num_threads(1)
        return torch.device("cpu")
    torch.cuda.init()
    return torch.device("cuda", torch.cuda.current_device())


def memory_gb(device: torch.device) -> float:
    """Returns the memory of a CUDA device in GB of 10^9 bytes."""
    return torch.cuda.get_device_properties(device).total_memory / GB


def half_precision(device: torch.device) -> torch.dtype:
    """Returns bf16 on devices that compute it natively, else fp32."""
    emulates = device.type == "cuda" and not computes_bf16(device)
    return torch.float32 if emulates else torch.bfloat16


def synchronize(device: torch.device) -> None:
    """Waits for what was queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], Any], device: torch.device, *, repeats: int = 5, warmups: int = 1) -> float:
    """Returns the median seconds of `action` on the device, with launches counted in."""
    for _ in range(warmups):
        action()
    return statistics.median(wall_seconds(action, device) for _ in range(repeats))


def wall_seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds of one call, to the end of what it queued."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


def peak_bytes(action: Callable[[], Any], device: torch.device) -> int | None:
    """Returns the most bytes that `action` held beside what was there before; None on a CPU."""
    if device.type != "cuda":
        return None
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    action()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference over the norm of `expected`, in fp64 on the CPU."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def largest(numbers: Iterable[float]) -> float:
    """Returns the largest number, and NaN if there is one, which Python's `max` may overlook."""
    return float(np.max(list(numbers)))


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Returns the largest `relative_error` of several tensors."""
    return largest(relative_error(*pair) for pair in zip(found, expected, strict=True))


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """Returns the output of `function(*inputs)` and the gradients of all inputs, from the output's `gradient`."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return [output, *torch.autograd.grad(output, leaves, gradient)]


def forward_and_backward(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor, expected: Sequence[Tensor]
) -> dict[str, Any]:
    """Returns the figures of a forward with its backward pass.

    `ms` counts launches in; `kernel_ms` are the device's alone, `peak_gb` what was held beside the inputs, and `error`
    is the largest against `expected`.
    """
    device = gradient.device

    def action() -> list[Tensor]:
        return with_gradients(function, inputs, gradient)

    error = largest_error(action(), expected)
    peak = peak_bytes(action, device)
    milliseconds = seconds_of(action, device, warmups=2) * 1e3
    return {
        "ms": round(milliseconds, 4),
        "kernel_ms": profiled(action, device)["milliseconds"] if device.type == "cuda" else None,
        "peak_gb": None if peak is None else round(peak / GB, 3),
        "error": error,
    }


def described(found: Mapping[str, Any]) -> str:
    """Returns what `forward_and_backward` or `attempt` has found, for the table."""
    if "ms" not in found:
        return str(found.get("unavailable", ""))
    memory = "" if found["peak_gb"] is None else f", {found['peak_gb']} GB"
    return f"{found['ms']:.3g} ms{memory}"


def attempt(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what `action` returns, or why a kernel cannot run here."""
    try:
        return action()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"unavailable": "out of memory"}
    except Exception as error:  # of other projects' kernels, which say in many ways that they cannot run here
        return {"unavailable": f"{type(error).__name__}: {first_line(error)}"}
