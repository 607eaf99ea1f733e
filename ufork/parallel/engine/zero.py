"""A DeepSpeed ZeRO-3 engine around one stage's modules.

    model + optimizer + engine_config -> Engine: forward, backward, one reduction of gradients a step, clipped update

Losses are normalised by the whole job's targets before the backward pass, so the engine must neither divide by
accumulation steps nor average over ranks; and gradients are clipped by the norm of the whole job, over all stages.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_set_full_grad,
)
from torch import Tensor, nn

from ufork.parallel.engine.muon import RATE_RATIO, Muon
from ufork.parallel.engine.optimizer_state import counting_once
from ufork.parallel.engine.rank_state import EngineShards
from ufork.parallel.engine.release import release
from ufork.parallel.engine.resident_passes import ResidentPasses
from ufork.parallel.engine.sharded_passes import ShardedPasses, gather_together
from ufork.parallel.engine.whole_matrices import MatrixShard, WholeMatrices
from ufork.parallel.tracing.trace import Tracer
from ufork.parallel.transport.stage_world import World
from ufork.vocabulary import PackedSequence, Task


class Grid:
    """Implements DeepSpeed's model-parallel unit (`mpu`), by which ZeRO shards over `dp_group` only."""

    def __init__(self, world: World):
        self._dp, self._tp = world.dp_group, world.tp_group

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Returns the ranks that ZeRO shards over."""
        return self._dp

    def get_data_parallel_world_size(self) -> int:
        """Returns their number."""
        return self._dp.size()

    def get_data_parallel_rank(self) -> int:
        """Returns this rank among them."""
        return self._dp.rank()

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Returns the ranks of this replica."""
        return self._tp

    def get_model_parallel_world_size(self) -> int:
        """Returns their number."""
        return self._tp.size()

    def get_model_parallel_rank(self) -> int:
        """Returns this rank among them."""
        return self._tp.rank()

    # DeepSpeed uses either name.
    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_rank = get_model_parallel_rank


class Engine:
    """One stage's modules, sharded over its data-parallel ranks by ZeRO-3.

    Attributes:
        trains: whether the stage has parameters to update.
        shards: this rank's shards of them and of the optimizer state; None if the stage trains nothing.
        gradient_scale: factor by which gradients of inputs are too large after `backward`, since ZeRO averages over
            replicas.
        device: this rank's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        config: dict[str, Any],
        world: World,
        *,
        gathered_whole: Sequence[type[nn.Module]] = (),
        partition_dims: dict[str, int] | None = None,
        backward_at_once: bool = True,
        resident: bool = False,
    ):
        """Shards `model`.

        Args:
            model: the stage's modules.
            optimizer: optimizer of the parameters that train; None if none do.
            config: DeepSpeed's configuration, from `engine_config`.
            world: this rank's.
            gathered_whole: classes of modules whose parameters are gathered together, not layer by layer.
            partition_dims: by name, the dimension along which a parameter is partitioned over the tp ranks.
            backward_at_once: whether each backward pass directly follows its forward pass, between which the weights
                then stay gathered; else passes come in any order.
            resident: whether the weights stay whole on all replicas between updates; DeepSpeed's hooks then do not run.
        """
        deepspeed_logger.setLevel(logging.WARNING)
        deepspeed_logger.addFilter(_concerns_users)
        _disable_shared_memory_collectives()
        self.trains, self.device = optimizer is not None, world.device
        self.gradient_scale = world.dp_group.size() if self.trains else 1
        self._world, self._partition_dims = world, partition_dims or {}
        if not resident:
            gather_together(model, gathered_whole)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, mpu=Grid(world), dist_init_required=False
        )
        self._passes: ShardedPasses | ResidentPasses = (
            ResidentPasses(self._engine, trains=self.trains, replicas=world.dp_group)
            if resident
            else ShardedPasses(self._engine, trains=self.trains, backward_at_once=backward_at_once)
        )
        self.shards = EngineShards(self._engine, world, self._partition_dims) if self.trains else None
        self._names = {id(parameter): name for name, parameter in self._engine.module.named_parameters()}
        if isinstance(optimizer, Muon):
            self._shard_matrices(optimizer)

    def _shard_matrices(self, muon: Muon) -> None:
        """Tells Muon which matrices ZeRO's flat tensors have shards of."""
        zero = self._engine.optimizer
        for number, (parameters, flat) in enumerate(
            zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True)
        ):
            if muon.param_groups[zero.sub_group_to_group_id[number]]["matrices"]:
                shards = [
                    MatrixShard(tuple(p.ds_shape), self._partition_dims.get(self._names[id(p)])) for p in parameters
                ]
                group = dist.group.WORLD if dist.get_world_size() > 1 else None
                whole = WholeMatrices(shards, tp=self._world.tp_group.size(), group=group)
                muon.shard(flat, whole, parameters[0].dtype)

    def accumulating(self, *, once: bool = True) -> AbstractContextManager[None]:
        """Encloses the passes of a step: gradients are reduced at its end or, unless `once`, at every backward.

        After an error in it nothing is reduced, and the engine is of no further use.
        """
        return self._passes.accumulating(once=once)

    def forward(self, sequence: PackedSequence, *args: Any) -> Any:
        """Returns the model's output for `sequence`; all replicas run the same passes of the same tasks in lockstep."""
        return self._passes.forward(sequence, *args)

    def backward(self, loss: Tensor, task: Task) -> None:
        """Adds the gradients of `loss`, this replica's term of a sum over all replicas, for a sequence of `task`."""
        self._passes.backward(loss * self.gradient_scale, task)

    def squared_gradients(self, *, exclude: Collection[str] = ()) -> Tensor:
        """Returns this rank's term of the squared norm of the stage's gradients, which is the sum over its ranks.

        A scalar in fp64 on this rank's device, so that the host can read it together with the losses.

        Args:
            exclude: names of parameters that are counted elsewhere.
        """
        counted = [gradient for name, gradient in self._gradient_shards() if self._counts(name) and name not in exclude]
        if not counted:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        norms = torch.stack(torch._foreach_norm(counted, 2, dtype=torch.float32))
        return norms.double().square().sum().to(self.device)

    def _gradient_shards(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's shards of the reduced gradients, uncopied and in the precision they were reduced in."""
        if not self.trains:
            return
        optimizer = self._engine.optimizer
        if optimizer.offload_optimizer:
            groups = {group: shards.values() for group, shards in optimizer.get_fp32_grad_partitions().items()}
        else:
            groups = optimizer.averaged_gradients
        for group, shards in groups.items():
            for parameter, shard in zip(optimizer.fp16_groups[group], shards, strict=True):
                yield self._names[id(parameter)], shard

    def _counts(self, name: str) -> bool:
        """Whether this rank counts a parameter, of which every tp rank holds a copy unless it is partitioned."""
        return name in self._partition_dims or self._world.coordinate.tp_rank == 0

    def step(self, learning_rate: float, gradient_norm: float) -> None:
        """Clips by `gradient_norm`, the job's, and updates the weights; if it is not finite, nothing changes."""
        if not self.trains:
            return
        optimizer = self._engine.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get(RATE_RATIO, 1.0)
        norm = torch.tensor(gradient_norm)  # on the host, where DeepSpeed asks whether it is finite
        optimizer._get_norm_groups = lambda: [norm]  # DeepSpeed would clip by the stage's own norm
        with counting_once(optimizer.optimizer):
            self._engine.step()
        self._passes.follow_update()

    def trace_gathers(self, tracer: Tracer) -> None:
        """Makes `tracer` record how long ZeRO-3 takes to gather weights from other replicas."""
        self._passes.trace_gathers(tracer)

    def whole_gradient(self, name: str) -> Tensor:
        """Returns a parameter's reduced gradient in fp32, gathered over the replicas but not over the tp ranks."""
        return safe_get_full_grad(self._parameter(name))

    def replace_gradient(self, name: str, gradient: Tensor) -> None:
        """Replaces that gradient; all ranks of the stage must call both."""
        safe_set_full_grad(self._parameter(name), gradient)

    def _parameter(self, name: str) -> nn.Parameter:
        return self._engine.module.get_parameter(name)

    def full_weights(self) -> dict[str, Tensor]:
        """Returns the whole parameters (fp32, CPU) on the stage's first rank, nothing elsewhere; all must call.

        Gathers and copies one parameter after the other, and waits for each: at the end of a phase and for drawings.
        """
        weights = {}
        for name, parameter in self._engine.module.named_parameters():
            whole = self._joined(name, self._gathered(parameter))
            self._world.wait_for_device(f"the weight {name}")
            if self._world.coordinate.leads_stage:
                weights[name] = whole.detach().to("cpu", torch.float32, copy=True)
        return weights

    def _gathered(self, parameter: nn.Parameter) -> Tensor:
        if parameter.requires_grad:
            return safe_get_full_fp32_param(parameter)
        return self._passes.whole_weight(parameter)

    def _joined(self, name: str, tp_shard: Tensor) -> Tensor:
        """The tp shards of all ranks of the replica as one tensor."""
        if name not in self._partition_dims:
            return tp_shard
        tp_shards = [torch.empty_like(tp_shard) for _ in range(self._world.tp_group.size())]
        dist.all_gather(tp_shards, tp_shard.contiguous(), group=self._world.tp_group)
        return torch.cat(tp_shards, dim=self._partition_dims[name])

    def close(self) -> None:
        """Frees the engine's memory, so that the process can open another one; it cannot be used any more."""
        self._passes.close()
        release(self._engine)


def _concerns_users(record: logging.LogRecord) -> bool:
    """Whether a message of DeepSpeed's is for users: not the one that an optimizer is none of those that it knows."""
    return "untested optimizer" not in record.getMessage()


def _disable_shared_memory_collectives() -> None:
    """Makes DeepSpeed use gloo on CPUs: its own collectives spin for ever when a peer dies, and have to be compiled.

    It asks a dict which of its operators can be compiled. Nobody else reads that dict, whose values DeepSpeed (0.19.8)
    finds on the first access by trying the machine's compilers and GPUs for every operator.
    """
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
