"""A rank's shards inside a ZeRO-3 engine, by the names of the parameters: read for a checkpoint, and put back.

engine -> read() -> RankState        files of any layout -> this rank's parts -> restore() -> engine
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from ufork.parallel.engine.state_files import WEIGHT, Part, RankState
from ufork.parallel.transport.stage_world import World


class EngineState:
    """Those of one DeepSpeed engine that trains something."""

    def __init__(self, engine: Any, world: World, partition_dims: dict[str, int]):
        """`partition_dims` tells, by name, the dimension along which a parameter is a slice (tensor parallelism)."""
        self._world, self._partition_dims = world, partition_dims
        self._zero = engine.optimizer
        self._parameters: dict[str, Any] = dict(engine.module.named_parameters())

    def read(self) -> RankState:
        """What this rank holds of every parameter that trains, and of what the optimizer keeps for it; not copied."""
        trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        tensors = {WEIGHT: {name: safe_get_local_fp32_param(p) for name, p in trained.items()}}
        for kind in self._kept_kinds():
            tensors[kind] = {name: safe_get_local_optimizer_state(p, kind) for name, p in trained.items()}
        coordinate = self._world.coordinate
        return RankState(
            dp=self._world.dp_group.size(),
            dp_rank=coordinate.dp_rank,
            tp=self._world.tp_group.size(),
            tp_rank=coordinate.tp_rank,
            shapes={name: tuple(p.ds_shape) for name, p in trained.items()},
            partition_dims=self._partition_dims,
            optimizer_steps=self._optimizer_steps(),
            tensors=tensors,
        )

    def restore(
        self, read: Callable[[str, str, Part], Tensor | None], kept: Collection[str], optimizer_steps: int
    ) -> None:
        """Takes this rank's shards, however they were sharded when they were written.

        Args:
            read: a part by kind and parameter's name, as `StateFiles.part`; where it is None, what is there stays.
            kept: kinds besides WEIGHT: what the optimizer kept.
            optimizer_steps: updates that these have seen.
        """
        for flat in self._zero.fp32_partitioned_groups_flat:
            if kept:
                self._zero.optimizer.state[flat] = {kind: torch.zeros_like(flat) for kind in kept}
                self._zero.optimizer.state[flat]["step"] = torch.tensor(float(optimizer_steps))
        for group in self._zero.param_groups:
            if "step" in group:  # NVIDIA apex counts there
                group["step"] = optimizer_steps
        self._zero.checkpoint_event_prologue()
        for name, parameter in self._parameters.items():
            for kind in (WEIGHT, *kept):
                shard = read(kind, name, self._own_part(name, parameter)) if parameter.requires_grad else None
                if shard is not None:
                    self._put(kind, parameter, shard.to(self._world.device, torch.float32))
        self._zero.checkpoint_event_epilogue()

    @staticmethod
    def _put(kind: str, parameter: nn.Parameter, shard: Tensor) -> None:
        if kind != WEIGHT:
            safe_set_local_optimizer_state(parameter, shard, kind)
            return
        safe_set_local_fp32_param(parameter, shard)
        in_passes: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        in_passes.copy_(shard.view(in_passes.shape))

    def _own_part(self, name: str, parameter: Any) -> Part:
        coordinate, num_entries = self._world.coordinate, parameter.ds_tensor.numel()
        return Part(
            tp=self._world.tp_group.size(),
            tp_rank=coordinate.tp_rank,
            partition_dim=self._partition_dims.get(name),
            start=coordinate.dp_rank * num_entries,
            stop=(coordinate.dp_rank + 1) * num_entries,
        )

    def _kept_kinds(self) -> list[str]:
        """Names under which the optimizer keeps a number for each of a parameter's."""
        shape = self._zero.fp32_partitioned_groups_flat[0].shape
        return [kind for kind, value in self._kept().items() if torch.is_tensor(value) and value.shape == shape]

    def _optimizer_steps(self) -> int:
        return int(self._kept().get("step", self._zero.param_groups[0].get("step", 0)))

    def _kept(self) -> dict[str, Any]:
        """What the optimizer keeps for one of its flat parameters; nothing before its first step."""
        return self._zero.optimizer.state.get(self._zero.fp32_partitioned_groups_flat[0], {})
