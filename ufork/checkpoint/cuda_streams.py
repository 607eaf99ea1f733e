"""The calls of CUDA that a checkpoint's copy needs: a stream beside that of training, and page-locked host memory."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_PORTABLE = 1
"""cudaHostRegisterPortable: pages are locked for every CUDA context."""


class CudaStreams:
    """The calls for one device.

    Attributes:
        copying: stream of the copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.copying = torch.cuda.Stream(device)

    def training(self) -> torch.cuda.Stream:
        """Returns the stream on which the calling thread launches its work."""
        return torch.cuda.current_stream(self._device)

    def copy(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Launches one copy per pair on `copying`; those from the host (offloaded) are copied at once."""
        with torch.cuda.stream(self.copying):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)

    def lock_pages(self, memory: Tensor) -> str:
        """Makes the device write into `memory` without the host; returns why it cannot, "" if it can.

        Registers it with CUDA: torch's own page-locked memory is rounded up to a power of two, and kept.
        """
        cudart = torch.cuda.cudart()
        error = cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, _PORTABLE)
        if int(error) == 0:
            return ""
        self._clear_error()
        return str(cudart.cudaGetErrorString(error))

    def unlock_pages(self, memory: Tensor) -> None:
        """Undoes `lock_pages`; does nothing where that has failed."""
        if memory.is_pinned() and int(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())):
            self._clear_error()

    def _clear_error(self) -> None:
        """CUDA keeps the last error until it is asked for, which torch does at the next launch of a kernel."""
        try:
            torch.ones(1, device=self._device)
        except RuntimeError as error:
            log.debug("cleared: %s", error)

    def enter_thread(self) -> None:
        """Makes a new thread use this device: one that does not would open a context on GPU 0."""
        torch.cuda.set_device(self._device)
