"""A rank's shards inside a ZeRO-3 engine, by the names of the parameters: read for a checkpoint, and put back.

engine -> read() -> RankShards        whole tensors, of any layout -> restore() -> engine
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

from ufork.parallel.shard_files import WEIGHT, RankShards
from ufork.parallel.world import World


class ZeroShards:
    """Those of one DeepSpeed engine that trains something."""

    def __init__(self, engine: Any, world: World, sliced_dims: dict[str, int]):
        """`sliced_dims` tells, by name, the dimension along which a parameter is a slice (tensor parallelism)."""
        self._world, self._sliced_dims = world, sliced_dims
        self._zero = engine.optimizer
        self._parameters: dict[str, Any] = dict(engine.module.named_parameters())

    def read(self) -> RankShards:
        """What this rank holds of every parameter that trains, and of what the optimizer keeps for it; not copied."""
        trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        tensors = {WEIGHT: {name: safe_get_local_fp32_param(p) for name, p in trained.items()}}
        for kind in self._kept_kinds():
            tensors[kind] = {name: safe_get_local_optimizer_state(p, kind) for name, p in trained.items()}
        place = self._world.place
        return RankShards(
            dp=self._world.dp_group.size(),
            dp_rank=place.dp_rank,
            tp=self._world.tp_group.size(),
            tp_rank=place.tp_rank,
            shapes={name: tuple(p.ds_shape) for name, p in trained.items()},
            sliced_dims=self._sliced_dims,
            optimizer_steps=self._optimizer_steps(),
            tensors=tensors,
        )

    def restore(self, whole: Callable[[str, str], Tensor | None], kept: Collection[str], optimizer_steps: int) -> None:
        """Takes this rank's shards from whole tensors, however they were sharded when they were written.

        Args:
            whole: the tensor of a kind and a parameter's name; None where there is none, which then stays what it is.
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
                found = whole(kind, name) if parameter.requires_grad else None
                if found is not None:
                    self._put(kind, parameter, self._own_shard(name, found, parameter.ds_tensor.numel()))
        self._zero.checkpoint_event_epilogue()

    @staticmethod
    def _put(kind: str, parameter: nn.Parameter, shard: Tensor) -> None:
        if kind != WEIGHT:
            safe_set_local_optimizer_state(parameter, shard, kind)
            return
        safe_set_local_fp32_param(parameter, shard)
        in_passes: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        in_passes.copy_(shard.view(in_passes.shape))

    def _own_shard(self, name: str, whole: Tensor, num_entries: int) -> Tensor:
        """Of a whole tensor, the flat part that is this rank's, padded like ZeRO pads it."""
        if name in self._sliced_dims:
            whole = whole.chunk(self._world.tp_group.size(), dim=self._sliced_dims[name])[self._world.place.tp_rank]
        flat = whole.flatten()[self._world.place.dp_rank * num_entries :][:num_entries]
        return nn.functional.pad(flat, (0, num_entries - flat.numel())).to(self._world.device, torch.float32)

    def _kept_kinds(self) -> list[str]:
        """Names under which the optimizer keeps a number for each of a parameter's."""
        shape = self._zero.fp32_partitioned_groups_flat[0].shape
        return [kind for kind, value in self._kept().items() if torch.is_tensor(value) and value.shape == shape]

    def _optimizer_steps(self) -> int:
        return int(self._kept().get("step", self._zero.param_groups[0].get("step", 0)))

    def _kept(self) -> dict[str, Any]:
        """What the optimizer keeps for one of its flat parameters; nothing before its first step."""
        return self._zero.optimizer.state.get(self._zero.fp32_partitioned_groups_flat[0], {})
