"""Passes of the real model without its numbers: on the meta device, with the bytes and kernels they would take."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.meta_kernels import kernels_of
from ufork.model.kernels import use_kernels
from ufork.model.layers import dropout
from ufork.model.layers.attention_kernels import varlen_attention
from ufork.model.unifork import UniFork
from ufork.planning.workload import Workload
from ufork.vocabulary import PackedSequence, Task

ALLOCATOR_BYTES = 512
"""Sizes are rounded up to this, as torch's CUDA allocator does."""
FLASH_BACKWARD = "torch_attn::_varlen_attn_backward"
PRODUCTS = {
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "torch_attn::_varlen_attn",
    FLASH_BACKWARD,
}
GATHERS = {"aten::gather", "aten::index_select", "aten::embedding", "aten::index"}
SCATTERS = {"aten::scatter_add_", "aten::index_add_", "aten::index_copy"}
"""Operations that touch only the entries that they select."""
NO_KERNEL = {
    "aten::_unsafe_view",
    "aten::empty",
    "aten::new_empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::detach",
}


@dataclass
class Trace:
    """What a pass took."""

    peak: int = 0
    """Most bytes held at once."""
    peak_operation: str = ""
    kernels: Counter[str] = field(default_factory=Counter)
    """Number of launches by operation; views launch nothing."""
    moved: Counter[str] = field(default_factory=Counter)
    """Bytes read and written, by operation, without matrix products."""


class MetaTracker(TorchDispatchMode):
    """Counts the storages alive on a kind of device, the kernels and the bytes they move."""

    def __init__(self, device_type: str = "meta"):
        super().__init__()
        self.now, self.trace, self.device_type = 0, Trace(), device_type
        self._sizes: dict[int, int] = {}

    def restart(self) -> Trace:
        """Starts a new trace, and returns the one until now."""
        trace, self.trace = self.trace, Trace(peak=self.now)
        return trace

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that exist already."""
        for tensor in tensors:
            self._note(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for output in outputs:
            self._note(output)
        workspace = _flash_workspace(args) if name == FLASH_BACKWARD else 0
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in NO_KERNEL:
            self.trace.kernels[name] += 1
            if name not in PRODUCTS:
                inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
                self.trace.moved[name] += _bytes_moved(name, inputs, outputs)
        if self.now + workspace > self.trace.peak:
            self.trace.peak = self.now + workspace
            self.trace.peak_operation = f"{name} {[tuple(output.shape) for output in outputs]}"
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type == self.device_type and storage._cdata not in self._sizes:
            size = -(-storage.nbytes() // ALLOCATOR_BYTES) * ALLOCATOR_BYTES
            self._sizes[storage._cdata] = size
            self.now += size
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class _KnownNumbers(TorchDispatchMode):
    """Answers what depends on data: a `nonzero` finds `num_labels` entries, and a number read back is 0."""

    def __init__(self, num_labels: int):
        super().__init__()
        self.num_labels = num_labels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name == "aten::nonzero":
            return args[0].new_empty((self.num_labels, args[0].dim()), dtype=torch.long)
        return 0 if name == "aten::_local_scalar_dense" else func(*args, **(kwargs or {}))


def _flash_workspace(args: Any) -> int:
    """Bytes that FlashAttention's backward pass allocates and frees: fp32 sums, and gradients of repeated keys."""
    _, query_THW, key_TGW, *_ = tensors = [argument for argument in args if isinstance(argument, Tensor)]
    starts = next(tensor for tensor in tensors if tensor.dtype == torch.int32)
    tokens, heads, features = query_THW.shape
    rows = tokens + 128 * (len(starts) - 1)
    sums = rows * heads * (-(-features // 32) * 32 + 1) * 4
    repeated = 2 * query_THW.numel() * query_THW.element_size() if key_TGW.shape[1] != heads else 0
    return sums + repeated


def _bytes_moved(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    if name in GATHERS:
        return 2 * sum(map(_bytes_of, outputs))
    if name in SCATTERS:
        return 2 * _bytes_of(inputs[-1])
    if name == "aten::logsumexp":  # maximum, difference, exponential in place and sum: four kernels on CUDA
        return 6 * _bytes_of(inputs[0])
    return sum(map(_bytes_of, inputs + outputs))


def _bytes_of(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _TorchWithMetaGenerators:
    """torch, whose generators a meta tensor accepts."""

    def __getattr__(self, name: str) -> Any:
        return (lambda device: torch.Generator()) if name == "Generator" else getattr(torch, name)


@contextmanager
def meta_passes(num_labels: int = 0) -> Iterator[None]:
    """Lets the model run on the meta device; the labels of its sequence are `num_labels`."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(dropout, "torch", _TorchWithMetaGenerators()))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(_KnownNumbers(num_labels))
        yield


def meta_model(workload: Workload) -> UniFork:
    """Returns the model of `workload` in its precision, as it trains."""
    with torch.device("meta"):
        model = UniFork(workload.model, workload.dimensions, varlen_attention)
    use_kernels(model, kernels_of(workload.fused))
    model.set_recompute(workload.recompute)
    return model.to(torch.bfloat16 if workload.precision == "bf16" else torch.float32)


def meta_sequence(workload: Workload, task: Task) -> PackedSequence:
    """Returns `workload.sequence` on the meta device."""
    return workload.sequence(task).to("meta")


def trace_second_pass(workload: Workload, task: Task) -> tuple[Trace, Trace]:
    """Returns the forward and the backward pass of a sequence of `task`, when the gradients of another exist.

    The peaks include weights and gradients.
    """
    model, sequence = meta_model(workload), meta_sequence(workload, task)
    tracker = MetaTracker()
    tracker.hold(model.parameters())
    with meta_passes(workload.sequence(task).num_targets), tracker:
        for _ in range(2):
            tracker.restart()
            loss = model(sequence)
            forward = tracker.restart()
            loss.backward()
            del loss
            backward = tracker.restart()
    return forward, backward
