"""How tensors pass between the devices of ranks that compute on CUDA: NCCL groups and events.

Ranks on CPUs have no data plane: the bridge's host group carries everything, and the host waits for each transfer.
With a data plane, a transfer runs on the device and waiting for it only orders streams; `device_progress.py` is how the
host waits. What the host must read anyway (packed sequences, counts, losses) uses the host group on every device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

PAIR_CTAS = 4
"""Thread blocks of a transfer's kernel. It spins until the peer answers, so it must leave the GPU to the passes."""
NCCL_MARGIN_SECONDS = 60.0


class DeviceEvent(Protocol):
    """A point in the work of a device, as `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether the device has passed it."""
        ...


class Connect(Protocol):
    """Makes a group, as `ProcessGroupNCCL` does; all its ranks must call."""

    def __call__(self, store: dist.Store, rank: int, size: int, timeout: timedelta, *, during_passes: bool) -> Any:
        """Returns the group; `during_passes`: its transfers run beside forward and backward passes."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataPlane:
    """What the bridge needs of a kind of device whose transfers do not block the host."""

    connect: Connect
    record_event: Callable[[], DeviceEvent]
    """Records an event behind all that the current stream has been given."""


def data_plane_of(device: torch.device) -> DataPlane | None:
    """Returns the data plane of a rank's device; None on CPUs."""
    return DataPlane(connect=_connect_nccl, record_event=_record_cuda_event) if device.type == "cuda" else None


def nccl_timeout(timeout: timedelta) -> timedelta:
    """Returns the time-out of NCCL's watchdog, which ends the process without naming the lost rank.

    It counts from the launch of an operation, up to a step before the host begins to wait with its own `timeout`; so it
    is later, and only matters for a host that is stuck in a CUDA call.
    """
    return 2 * timeout + timedelta(seconds=NCCL_MARGIN_SECONDS)


def error_of(group: Any) -> str | None:
    """Returns what a group's watchdog has found, for example a closed connection; None if all is well."""
    if not hasattr(group, "get_error"):  # torch wraps groups under TORCH_DISTRIBUTED_DEBUG=DETAIL
        return None
    error = group.get_error()
    return None if error.name == "SUCCESS" else f"{error.name.lower()} of a {group.name()} group"


def _connect_nccl(store: dist.Store, rank: int, size: int, timeout: timedelta, *, during_passes: bool) -> Any:
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options._timeout = nccl_timeout(timeout)
    if during_passes:
        options.config.max_ctas = PAIR_CTAS
    return dist.ProcessGroupNCCL(store, rank, size, options)


def _record_cuda_event() -> DeviceEvent:
    event = torch.cuda.Event()
    event.record()
    return event
