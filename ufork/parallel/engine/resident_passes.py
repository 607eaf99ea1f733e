"""Passes of a stage whose weights stay whole on every rank, so that DeepSpeed's hooks need not run.

    one replica        parameter       -> a view of its ZeRO partition, which an update changes in place
                       parameter.grad  -> a view of ZeRO's buffer of reduced gradients: autograd adds to it
    several replicas   parameter       -> memory of its own, filled from all replicas' partitions after each update
                       parameter.grad  -> autograd's; reduced at the end of a step

DeepSpeed would fetch and free weights at every module and pass, and wait for the device at every fetch: on an H200 its
hooks took longer than the kernels of the released model. The reduction and the update stay DeepSpeed's.

The attributes of DeepSpeed's objects that this module uses are those of DeepSpeed 0.19.8.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn

from ufork.parallel.tracing.trace import Tracer
from ufork.vocabulary import PackedSequence, Task


class ResidentPasses:
    """The passes of one engine."""

    def __init__(self, engine: Any, *, trains: bool, replicas: dist.ProcessGroup):
        """Makes the weights of `engine`, which is DeepSpeed's, whole on all ranks of `replicas`; all must call."""
        self._engine, self._replicas = engine, replicas
        self._module: nn.Module = engine.module
        self._zero = engine.optimizer
        _remove_hooks(engine, trains=trains)
        offload = self._zero.parameter_offload if trains else self._zero
        self._parameters: list[Any] = list(self._module.parameters())
        self._trained: list[list[Any]] = self._zero.fp16_groups if trains else []
        self._make_whole()
        offload.partition_all_parameters = _keep  # called before updates and checkpoints, to free what is gathered
        self._zero.persistent_parameters = []  # those that DeepSpeed would gather again after updates
        self._zero.checkpoint_event_epilogue = self.follow_update  # called after weights have been restored
        in_place = trains and replicas.size() == 1
        self._gradients = _gradients_by_group(self._zero) if in_place else []

    def _make_whole(self) -> None:
        for parameter in self._parameters:
            shard: Tensor = parameter.ds_tensor.data
            whole = shard if self._replicas.size() == 1 else shard.new_empty(shard.numel() * self._replicas.size())
            parameter.data = whole[: parameter.ds_numel].view(parameter.ds_shape)
            parameter.ds_status = ZeroParamStatus.AVAILABLE
        self._gather(self._parameters)

    def _gather(self, parameters: list[Any]) -> None:
        """Fills the weights from the partitions of all replicas."""
        if self._replicas.size() == 1 or not parameters:
            return
        shards = torch.cat([parameter.ds_tensor.data for parameter in parameters])
        gathered = shards.new_empty(self._replicas.size(), shards.numel())
        dist.all_gather_into_tensor(gathered.view(-1), shards, group=self._replicas)
        by_parameter = gathered.split([parameter.ds_tensor.numel() for parameter in parameters], dim=1)
        wholes = [_padded(parameter, self._replicas.size()) for parameter in parameters]
        torch._foreach_copy_(wholes, list(by_parameter))

    @contextmanager
    def accumulating(self, *, once: bool) -> Iterator[None]:
        """Encloses the passes of a step, as `Engine.accumulating`; `once` is true if there is something to reduce."""
        if self._trained:
            self._zero.grad_partitions_flat_buffer.zero_()
        for group in self._gradients:
            for parameter, flat in group:
                parameter.grad = flat.view(parameter.shape)
        yield
        if self._gradients:
            self._leave_gradients()
        elif self._trained:
            self._engine._flush_coalesced_reduction_zero3(self._zero)

    def _leave_gradients(self) -> None:
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

    def whole_weight(self, parameter: nn.Parameter) -> Tensor:
        """Returns a copy of a weight."""
        return parameter.detach().clone()

    def follow_update(self) -> None:
        """Makes the weights those of the partitions, which an update or a checkpoint has changed."""
        for group in self._trained:
            self._gather(group)

    def trace_gathers(self, tracer: Tracer) -> None:
        """Does nothing: passes gather nothing."""

    def close(self) -> None:
        """Lets go of weights and gradients."""
        self._gradients.clear()
        self._parameters, self._trained = [], []


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


def _padded(parameter: Any, num_replicas: int) -> Tensor:
    """Returns the memory of a whole weight, one row for each replica's partition; the last may be padded."""
    size = parameter.ds_tensor.numel()
    return parameter.data.as_strided((num_replicas, size), (size, 1), 0)


def _gradients_by_group(zero: Any) -> list[list[tuple[nn.Parameter, Tensor]]]:
    """Returns the parameters that train, each with its part of ZeRO's buffer of reduced gradients."""
    buffers = getattr(zero, f"_{type(zero).__name__}__param_id_to_grad_partition")
    return [[(parameter, buffers[parameter.ds_id]) for parameter in group] for group in zero.fp16_groups]


def _keep() -> None:
    """Takes the place of a method of DeepSpeed's that frees weights."""
