"""This rank's shards in a ZeRO-3 engine, by parameter name: read for a checkpoint, and restored from one.

engine -> read() -> RankState
files of any layout -> regions of this rank -> restore() -> engine
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state
from torch import Tensor, nn

from ufork.errors import ConfigError
from ufork.parallel.engine.optimizer_state import STEP, make_state
from ufork.parallel.engine.state_files import WEIGHT, RankState, ShardRegion
from ufork.parallel.transport.stage_world import World


class EngineShards:
    """Shards of one DeepSpeed engine that trains something."""

    def __init__(self, engine: Any, world: World, partition_dims: dict[str, int]):
        """Prepares to read and to restore.

        Args:
            engine: DeepSpeed's.
            world: this rank's.
            partition_dims: by name, the dimension along which a parameter is partitioned over the tp ranks.

        Raises:
            ConfigError: the optimizer is offloaded to files, of which no checkpoint can be made.
        """
        self._world, self._partition_dims = world, partition_dims
        self._zero = engine.optimizer
        if self._zero.swap_optimizer:
            raise ConfigError(
                "train.deepspeed.zero_optimization.offload_optimizer.device=nvme: checkpoints need the optimizer's"
                " state in memory; use device: cpu"
            )
        self._parameters: dict[str, Any] = dict(engine.module.named_parameters())

    def read(self) -> RankState:
        """Returns, uncopied, this rank's shards of every parameter that trains and of its optimizer state.

        They are views of ZeRO's flat tensors, where those are; DeepSpeed's own functions move what an offloaded
        optimizer keeps in host memory to the device.
        """
        trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        tensors: dict[str, dict[str, Tensor]] = {WEIGHT: {}}
        for name, parameter in trained.items():
            for kind, values in self._own_values(parameter).items():
                tensors.setdefault(kind, {})[name] = values
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
        self, read: Callable[[str, str, ShardRegion], Tensor | None], kinds: Collection[str], optimizer_steps: int
    ) -> None:
        """Restores this rank's shards from files of any layout.

        Args:
            read: returns a region by kind and parameter name, as `StateFiles.region`; on None the current values stay.
            kinds: kinds of optimizer state to restore besides WEIGHT.
            optimizer_steps: updates that the state has seen.
        """
        if kinds:
            make_state(self._zero.optimizer, self._zero.fp32_partitioned_groups_flat, updates=optimizer_steps)
        self._zero.checkpoint_event_prologue()
        for name, parameter in self._parameters.items():
            for kind in (WEIGHT, *kinds):
                shard = read(kind, name, self._own_region(name, parameter)) if parameter.requires_grad else None
                if shard is not None:
                    self._put(kind, parameter, shard.to(self._world.device, torch.float32))
        self._zero.checkpoint_event_epilogue()

    def _own_values(self, parameter: Any) -> dict[str, Tensor]:
        """A parameter's shard, and the optimizer's values that have one entry for each of its entries, by kind."""
        group, start, num_entries = self._zero.grad_position[self._zero.get_param_id(parameter)]
        flat = self._zero.fp32_partitioned_groups_flat[group]
        state = self._zero.optimizer.state.get(flat, {})  # empty before the first step
        values = {kind: value for kind, value in state.items() if torch.is_tensor(value) and value.shape == flat.shape}
        return {kind: value.detach().narrow(0, start, num_entries) for kind, value in {WEIGHT: flat, **values}.items()}

    @staticmethod
    def _put(kind: str, parameter: nn.Parameter, shard: Tensor) -> None:
        if kind != WEIGHT:
            safe_set_local_optimizer_state(parameter, shard, kind)
            return
        safe_set_local_fp32_param(parameter, shard)
        in_passes: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        in_passes.copy_(shard.view(in_passes.shape))

    def _own_region(self, name: str, parameter: Any) -> ShardRegion:
        coordinate, num_entries = self._world.coordinate, parameter.ds_tensor.numel()
        return ShardRegion(
            tp=self._world.tp_group.size(),
            tp_rank=coordinate.tp_rank,
            partition_dim=self._partition_dims.get(name),
            start=coordinate.dp_rank * num_entries,
            stop=(coordinate.dp_rank + 1) * num_entries,
        )

    def _optimizer_steps(self) -> int:
        """Updates taken. A fused optimizer counts on the device, so that the host waits for the last update here."""
        optimizer = self._zero.optimizer
        in_state = (optimizer.state.get(flat, {}) for flat in self._zero.fp32_partitioned_groups_flat)
        return max(int(counted.get(STEP, 0)) for counted in (*in_state, *optimizer.param_groups))
