"""What a piece of work does on the device: its kernels and launches, and how often it makes the host wait."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

NUM_KERNELS = 15


def profiled(action: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Returns the kernels (operators, on a CPU) of `action` that take the most time, and the number of launches."""
    is_cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU  # with CPU's too, reading takes a minute
    with profile(activities=[activity]) as recorded:
        action()
        if is_cuda:
            torch.cuda.synchronize(device)
    averages = recorded.key_averages()
    if is_cuda:  # annotations are spans over kernels, which would be counted twice
        on_device = [event for event in averages if event.device_type == DeviceType.CUDA]
        kernels = [(event.self_device_time_total, event) for event in on_device if not event.is_user_annotation]
    else:
        kernels = [(event.self_cpu_time_total, event) for event in averages]
    total = sum(microseconds for microseconds, _ in kernels)
    kernels.sort(key=lambda pair: pair[0], reverse=True)
    return {
        "milliseconds": round(total / 1e3, 3),
        "launches": sum(event.count for event in averages if "LaunchKernel" in event.key),
        "graph_launches": sum(event.count for event in averages if "GraphLaunch" in event.key),
        "kernels": [
            {
                "name": event.key[:100],
                "calls": event.count,
                "ms": round(microseconds / 1e3, 3),
                "share": round(microseconds / max(total, 1e-9), 4),
            }
            for microseconds, event in kernels[:NUM_KERNELS]
        ],
    }


def host_waits(action: Callable[[], Any]) -> dict[str, Any]:
    """Returns how often `action` makes the host wait for the CUDA device, and where in the code."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waits = [each for each in caught if "synchronizing CUDA operation" in str(each.message)]
    places = Counter(f"{each.filename.partition('site-packages/')[2] or each.filename}:{each.lineno}" for each in waits)
    return {"count": len(waits), "places": dict(places.most_common(20))}
