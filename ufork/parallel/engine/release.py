"""Frees the memory of a DeepSpeed engine, of which `DeepSpeedEngine.destroy` frees nothing but hooks.

    hooks -> references from the library's globals -> parameters, ZeRO's partitions and buffers, optimizer state

Two of DeepSpeed's globals (seen in 0.19.8) keep every engine of a process alive: a stack of the modules whose forward
pass runs, which an engine's root module enters for ever, and a cache of the parameters to release after each module.
What a caller still holds of the engine is emptied, so that memory does not depend on when the last reference goes.
"""

import gc
from typing import Any

import torch
from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator
from torch import nn


def release(engine: Any) -> None:
    """Frees the memory of `engine`, a DeepSpeedEngine; neither it nor its module can be used any more."""
    module, zero, optimizer = engine.module, engine.optimizer, engine.basic_optimizer
    engine.destroy()
    _forget(module)
    if optimizer is not None:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["params"] = []
    parameters = list(module.parameters())
    for submodule in module.modules():
        submodule._buffers.clear()
    for parameter in parameters:
        parameter.grad = None
        parameter.data = torch.empty(0)
        vars(parameter).clear()
    vars(getattr(zero, "parameter_offload", zero)).clear()
    vars(zero).clear()
    engine.optimizer = engine.basic_optimizer = None
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _forget(module: nn.Module) -> None:
    running = getattr(parameter_offload, "FWD_MODULE_STACK", [])
    running[:] = [other for other in running if other is not module]
    for method in vars(partitioned_param_coordinator.PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():  # the cache is inside a decorator
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
