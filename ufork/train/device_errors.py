"""CUDA's errors in training as errors that name the phase, the step and what the user can change.

torch.OutOfMemoryError -> DeviceMemoryError;  an error of the device or its driver -> MachineError;  others as they are
"""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ufork.errors import BROKEN_DEVICE, DeviceMemoryError, MachineError, first_line
from ufork.model.cuda_device import memory_figures
from ufork.train.config import TrainConfig


@contextmanager
def device_errors(action: str, config: TrainConfig, *, seq_len: int, device: torch.device) -> Iterator[None]:
    """Raises CUDA's errors inside the block as ufork's.

    Args:
        action: what happens in the block, with the name of the phase.
        config: of the phase.
        seq_len: tokens of its packed sequences.
        device: of this rank.

    Raises:
        DeviceMemoryError: the device has too little memory; the message has torch's figures, and the keys to change.
        MachineError: the device or its driver failed.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        recompute = "" if config.activation_checkpointing else "set train.activation_checkpointing=true (is false), "
        raise DeviceMemoryError(
            f"{action}: {device} on {socket.gethostname()} has too little memory. {memory_figures(error)}"
            f" To use less, {recompute}lower data.seq_len (is {seq_len}), or change layout: more ranks hold less each."
            " `ufork plan RECIPE --gpus N` estimates the memory of layouts",
            device=str(device),
        ) from error
    except RuntimeError as error:
        if not re.search(BROKEN_DEVICE, str(error)):
            raise
        raise MachineError(
            f"{action}: {device} on {socket.gethostname()} failed: {first_line(error)}; look for Xid in its"
            " kernel log (dmesg), exclude the node, and run the same command again to resume",
            device=str(device),
        ) from error
