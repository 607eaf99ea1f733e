"""Passes through a DeepSpeed engine whose weights are sharded over replicas: gathered where they are used, then freed.

A step: begin -> forward and backward passes in any number -> gradients reduced, at the end or at every backward
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from ufork.parallel.engine.gather_traces import GatherTraces
from ufork.parallel.schedule.actions import Pass
from ufork.parallel.tracing.trace import Tracer
from ufork.vocabulary import PackedSequence, Task


class ShardedPasses:
    """The passes of one engine."""

    def __init__(self, engine: Any, *, trains: bool, backward_at_once: bool):
        """`engine` is DeepSpeed's; the others are as in `Engine`."""
        self._engine, self._trains = engine, trains
        self._backward_at_once, self._adds_partitions = backward_at_once, False
        self._traces = GatherTraces(engine.optimizer.parameter_offload if trains else engine.optimizer)

    @contextmanager
    def accumulating(self, *, once: bool) -> Iterator[None]:
        """Encloses the passes of a step, as `Engine.accumulating`."""
        self._traces.follow_updates()
        self._adds_partitions = self._trains and not once
        if self._adds_partitions:
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        with self._engine.coalesce_grad_reduction() if self._trains and once else nullcontext():
            try:
                yield
            except BaseException:
                # DeepSpeed reduces on the way out of an error, too, and would wait for ranks that may be lost
                self._engine._flush_coalesced_reduction_zero3 = lambda optimizer: None
                raise

    def forward(self, sequence: PackedSequence, *args: Any) -> Any:
        """Returns the model's output."""
        self._traces.select((sequence.task, Pass.FORWARD))
        output = self._engine(sequence, *args)
        if not self._backward_at_once:
            self._traces.end_forward()
        return output

    def backward(self, loss: Tensor, task: Task) -> None:
        """Adds the gradients of `loss`."""
        if not self._backward_at_once:
            self._traces.begin_backward((task, Pass.BACKWARD))
        if self._adds_partitions:
            # ZeRO overwrites its partitions in a step's first backward, which it detects by counting forwards; here
            # several forwards may precede it
            self._engine.optimizer.micro_step_id = 1
        self._engine.backward(loss, scale_wrt_gas=False)

    def whole_weight(self, parameter: nn.Parameter) -> Tensor:
        """Returns a copy of a weight, gathered from all replicas, which must call."""
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def follow_update(self) -> None:
        """Does nothing: passes gather the updated weights."""

    def trace_gathers(self, tracer: Tracer) -> None:
        """Makes `tracer` record how long gathers take."""
        self._traces.trace(tracer)

    def close(self) -> None:
        """Does nothing: all memory is DeepSpeed's."""


def gather_together(model: nn.Module, kinds: Sequence[type[nn.Module]]) -> None:
    """Makes ZeRO-3 gather all parameters of a module of one of these classes together, not layer by layer."""
    present = [kind for kind in kinds if any(isinstance(module, kind) for module in model.modules())]
    if present:
        deepspeed.utils.set_z3_leaf_modules(model, present)
        for module in model.modules():
            if isinstance(module, tuple(present)):
                module.register_forward_pre_hook(_join_backward)


def _join_backward(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Makes the input of a module that trains require a gradient, even behind frozen modules.

    ZeRO-3 recognises by the gradients of a module's inputs when its backward pass begins and ends, and without them
    frees the weights before their gradients are accumulated (seen in DeepSpeed 0.19.8).
    """
    hidden, *others = inputs
    trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    return (hidden.detach().requires_grad_(), *others) if trains and not hidden.requires_grad else None
