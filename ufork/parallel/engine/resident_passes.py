"""Passes of a stage with one replica, whose ZeRO partitions are whole: there is nothing to gather, nor to reduce.

    parameter           -> a view of its partition, which an update changes in place
    parameter.grad      -> a view of the buffer in which ZeRO expects the reduced gradient: autograd adds to it

DeepSpeed would fetch and free weights at every module, wait for the device at every fetch, and copy every gradient: on
an H200 its hooks took longer than the kernels of the released model. They are removed; the update stays DeepSpeed's.

The attributes of DeepSpeed's objects that this module uses are those of DeepSpeed 0.19.8.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn

from ufork.parallel.tracing.trace import Tracer
from ufork.vocabulary import PackedSequence, Task


class ResidentPasses:
    """The passes of one engine; later forward and backward passes of its module need no engine."""

    def __init__(self, engine: Any, *, trains: bool):
        """Makes the weights of `engine`, which is DeepSpeed's, resident."""
        self._module: nn.Module = engine.module
        self._zero = engine.optimizer
        _remove_hooks(engine, trains=trains)
        offload = self._zero.parameter_offload if trains else self._zero
        for parameter in self._module.parameters():
            _make_resident(parameter)
        offload.partition_all_parameters = _keep  # called before updates and checkpoints, to free what is gathered
        self._zero.persistent_parameters = []  # those that DeepSpeed would gather again after them
        self._gradients = _gradients_by_group(self._zero) if trains else []

    @contextmanager
    def accumulating(self, *, once: bool) -> Iterator[None]:
        """Encloses the passes of a step, as `Engine.accumulating`; there is no reduction that `once` could delay."""
        if self._gradients:
            self._zero.grad_partitions_flat_buffer.zero_()
        for group in self._gradients:
            for parameter, flat in group:
                parameter.grad = flat.view(parameter.shape)
        yield
        for number, group in enumerate(self._gradients):
            self._zero.averaged_gradients[number] = [flat for _, flat in group]
            for parameter, _ in group:
                parameter.grad = None  # the update reads the buffer, and DeepSpeed would handle these as its own

    def forward(self, sequence: PackedSequence, *args: Any) -> Any:
        """Returns the model's output."""
        return self._module(sequence, *args)

    def backward(self, loss: Tensor, task: Task) -> None:
        """Adds the gradients of `loss`."""
        loss.backward()

    def trace_gathers(self, tracer: Tracer) -> None:
        """Does nothing: nothing is gathered."""

    def close(self) -> None:
        """Lets go of the gradients."""
        self._gradients.clear()


def _remove_hooks(engine: Any, *, trains: bool) -> None:
    offload = engine.optimizer.parameter_offload if trains else engine.optimizer
    offload.partition_all_parameters()
    offload._remove_module_hooks()
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()
    if trains:
        for hook in engine.optimizer._grad_acc_hooks:
            hook.remove()
    for module in engine.module.modules():
        module._parameters = dict(module._parameters)  # DeepSpeed's own mapping looks at every access


def _make_resident(parameter: Any) -> None:
    parameter.data = parameter.ds_tensor.data.view(parameter.ds_shape)
    parameter.ds_status = ZeroParamStatus.AVAILABLE


def _gradients_by_group(zero: Any) -> list[list[tuple[nn.Parameter, Tensor]]]:
    """Returns the parameters that train, each with its part of ZeRO's buffer of reduced gradients."""
    buffers = getattr(zero, f"_{type(zero).__name__}__param_id_to_grad_partition")
    return [[(parameter, buffers[parameter.ds_id]) for parameter in group] for group in zero.fp16_groups]


def _keep() -> None:
    """Takes the place of a method of DeepSpeed's that frees weights."""
