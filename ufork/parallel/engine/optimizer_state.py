"""The state of an optimizer that DeepSpeed steps once for each of its flat tensors.

    make_state      the state that the optimizer itself would hold after some updates, for a checkpoint's values
    counting_once   one count for each update, however many flat tensors the optimizer is stepped for

torch counts updates in the state of each tensor, on the device that the kernel reads them from. NVIDIA apex counts in
its parameter groups, from its first step on, and counts every call; DeepSpeed calls it for each sub-group of up to
`sub_group_size` numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ufork.parallel.engine.muon import Muon

STEP = "step"
"""Key of the count of updates, in the state of a tensor (torch) or in a parameter group (NVIDIA apex)."""
_PROBE_NUMBERS = 3


def make_state(optimizer: torch.optim.Optimizer, flat_tensors: Sequence[Tensor], *, updates: int) -> None:
    """Gives each flat tensor the state that `optimizer` would hold for it after `updates`, all values zero.

    The optimizer updates a probe first, so that names, dtypes and devices of the values are its own.

    Args:
        optimizer: its groups hold no parameters, as between two steps of DeepSpeed.
        flat_tensors: the keys of the state, of one dtype and device.
        updates: number of updates that the state counts.
    """
    if isinstance(optimizer, Muon):
        for flat in filter(optimizer.is_sharded, flat_tensors):
            optimizer.make_momentum(flat).zero_()
        flat_tensors = [flat for flat in flat_tensors if not optimizer.is_sharded(flat)]
        optimizer = optimizer.adamw
    if not flat_tensors:
        return
    probe = nn.Parameter(torch.zeros(_PROBE_NUMBERS, dtype=flat_tensors[0].dtype, device=flat_tensors[0].device))
    probe.grad = torch.zeros_like(probe)
    first, *_ = optimizer.param_groups
    held, first["params"] = first["params"], [probe]
    optimizer.step()
    first["params"] = held
    made = optimizer.state.pop(probe)
    for flat in flat_tensors:
        optimizer.state[flat] = {
            name: _counted(value, updates) if name == STEP else _resized(value, probe, flat)
            for name, value in made.items()
        }
    if STEP in first:
        for group in optimizer.param_groups:
            group[STEP] = _counted(first[STEP], updates)


def _resized(value: Any, probe: Tensor, flat: Tensor) -> Any:
    if torch.is_tensor(value) and value.shape == probe.shape:
        return torch.zeros_like(flat, dtype=value.dtype, device=value.device)
    return value


def _counted(count: Any, updates: int) -> Any:
    return torch.full_like(count, updates) if torch.is_tensor(count) else type(count)(updates)


@contextmanager
def counting_once(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Encloses one update: an optimizer that counts in its groups counts it once, not for each call of its `step`."""
    if isinstance(optimizer, Muon):
        optimizer = optimizer.adamw
    before = [group.get(STEP) for group in optimizer.param_groups]

    def set_back(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, count in zip(optimizer.param_groups, before, strict=True):
            group.pop(STEP, None)
            if count is not None:
                group[STEP] = count

    hook = optimizer.register_step_pre_hook(set_back)
    try:
        yield
    finally:
        hook.remove()
    if [group.get(STEP) for group in optimizer.param_groups] != before:  # not so if the update was skipped
        for group, count in zip(optimizer.param_groups, before, strict=True):
            group[STEP] = (count or 0) + 1
