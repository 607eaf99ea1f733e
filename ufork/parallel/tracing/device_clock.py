"""The clock of a rank by its device.

On CUDA the host only launches work: the device reaches it later. Events mark points of its stream.
"""

import time
from collections.abc import Sequence

import torch

from ufork.parallel.tracing.trace import Clock, HostClock


def clock_of(device: torch.device) -> Clock:
    """Returns the clock of a rank that runs its passes on `device`."""
    return CudaClock(device) if device.type == "cuda" else HostClock()


class CudaClock:
    """Times at which a CUDA device reaches points of the stream on which passes run.

    A wait for a transfer or a gather takes as long as the stream stands still for it. While the host is late with
    launching the work of a pass, the device still counts as running the pass.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """Returns an event on the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        """Waits for the stream, once, and counts back from the machine's clock."""
        last = self.mark()
        last.synchronize()
        now = time.time()
        return [now - mark.elapsed_time(last) / 1e3 for mark in marks]
