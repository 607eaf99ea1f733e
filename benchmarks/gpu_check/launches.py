"""Counts what the host launches: kernels and graphs on CUDA; on a CPU the operators that would be kernels on a GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_check.profiling import profiled

_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def count_launches(action: Callable[[], Any], device: torch.device) -> int:
    """Returns the number of launches of `action`; on a CPU a lower bound of what a GPU would be given."""
    if device.type == "cuda":
        found = profiled(action, device)
        return found["launches"] + found["graph_launches"]
    with _Operators() as operators:
        action()
    return operators.count


class _Operators(TorchDispatchMode):
    """Counts operators that compute something: neither views nor allocations, and not on empty tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose():  # inference mode shows composite operators as one
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        outs, inputs = _tensors_in(out), _tensors_in((args, kwargs))
        addresses = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        only_views = all(tensor.untyped_storage().data_ptr() in addresses for tensor in outs)
        computes = func._schema.is_mutable or not only_views
        if computes and func._schema.name.split("::")[-1] not in _ALLOCATIONS and any(x.numel() for x in outs):
            self.count += 1
        return out


def _tensors_in(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
