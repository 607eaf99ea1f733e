"""The orders in which ZeRO-3 gathers weights: one record for each kind of pass, so that it prefetches in all of them.

    select(kind of pass) -> its coordinator: 1st pass: gathers a module's weights when the module runs, and records it
                                             2nd pass: all ranks agree that they have recorded the same
                                             then on:  gathers ahead along the record, and asks no other rank

DeepSpeed keeps one record, of what runs between the beginnings of two forward passes. A pass of another task, or a
trunk that runs several forward passes before a backward pass, contradicts it; the record is then thrown away, and a new
one costs four blocking agreements and passes that wait for every gather. Here every kind of pass has its own
PartitionedParameterCoordinator.

The attributes of DeepSpeed's objects that this module uses are those of DeepSpeed 0.19.8.
"""

import logging
from collections.abc import Hashable
from typing import Any

import deepspeed
from deepspeed.accelerator import get_accelerator
from torch import nn

from ufork.parallel.tracing.trace import Tracer

log = logging.getLogger(__name__)


class GatherTraces:
    """The records of one engine; where DeepSpeed's coordinator is not as expected, its own record for all passes."""

    def __init__(self, offload: Any) -> None:
        """`offload`: DeepSpeed's object whose hooks at every module use its `param_coordinator`."""
        self._offload, self._own = offload, offload.param_coordinator
        self._coordinators: dict[Hashable, Any] = {}
        self._tracer: Tracer | None = None
        self._expected_gradients: dict[nn.Module, int] = {}
        try:
            _like(self._own)
        except (AttributeError, TypeError) as error:
            self._one_for_all = True
            log.warning(
                "ZeRO-3 prefetches few weights: the coordinator of DeepSpeed %s is not that of 0.19.8, so passes of all"
                " tasks share one record of gathers (%s)",
                deepspeed.__version__,
                error,
            )
        else:
            self._one_for_all = False

    def follow_updates(self) -> None:
        """Makes later gathers read the weights as all that the current stream was given leaves them.

        They run on a stream of their own. DeepSpeed orders it after an update only where there are small weights that
        stay gathered, for which it waits for the device.
        """
        stream = getattr(self._own, f"_{type(self._own).__name__}__allgather_stream", None)
        if stream is not None:  # on CUDA
            stream.wait_stream(get_accelerator().current_stream())

    def select(self, kind: Hashable) -> Any:
        """Makes the following pass, which must be of `kind`, use the record of its kind; returns its coordinator.

        Passes of one kind run the same modules in the same order, on all ranks of the stage.
        """
        if kind not in self._coordinators:
            self._coordinators[kind] = self._own if self._one_for_all else self._traced(_like(self._own))
        self._offload.param_coordinator = self._coordinators[kind]
        return self._coordinators[kind]

    def end_forward(self) -> None:
        """Remembers how many gradients each module's backward pass expects, for backward passes that come later."""
        modules = self._offload.module.modules()
        self._expected_gradients = {m: m.ds_grads_remaining for m in modules if "ds_grads_remaining" in vars(m)}

    def begin_backward(self, kind: Hashable) -> None:
        """Selects `kind` for a backward pass that does not directly follow its forward pass.

        DeepSpeed regards only a forward pass as the beginning of a record; and it counts a module's gradients down from
        its last forward pass, so that a second backward pass after it would free no weights before its end.
        """
        for module, number in self._expected_gradients.items():
            module.ds_grads_remaining = number  # type: ignore[assignment]
        if not self._one_for_all:
            self.select(kind).reset_step()

    def trace(self, tracer: Tracer) -> None:
        """Makes `tracer` record how long each module waits for its weights; to be called before the first pass."""
        self._tracer = tracer
        self._traced(self._own)

    def _traced(self, coordinator: Any) -> Any:
        if not (tracer := self._tracer):
            return coordinator
        fetch = coordinator.fetch_sub_module

        def traced_fetch(module: nn.Module, forward: bool) -> None:
            with tracer.span("gather", type(module).__name__):
                fetch(module, forward=forward)

        coordinator.fetch_sub_module = traced_fetch
        return coordinator


def _like(coordinator: Any) -> Any:
    """A new coordinator of the same weights, limits and stream, with an empty record."""
    kind = type(coordinator)

    def private(name: str) -> Any:
        return getattr(coordinator, f"_{kind.__name__}__{name}")

    return kind(
        prefetch_bucket_sz=private("prefetch_bucket_sz"),
        max_reuse_distance_in_numel=private("max_reuse_dist_in_numel"),
        max_available_parameters_in_numel=private("max_n_available_params"),
        allgather_stream=private("allgather_stream"),
        inflight_param_registry=private("inflight_param_registry"),
        prefetch_nvme=private("prefetch_nvme"),
        zero_quantized_weights=coordinator.zero_quantized_weights,
        zero_quantized_nontrainable_weights=coordinator.zero_quantized_nontrainable_weights,
        fast_sharding_for_leaf_module=coordinator.fast_sharding_for_leaf_module,
        log_trace_cache_warnings=private("log_trace_cache_warnings"),
    )
