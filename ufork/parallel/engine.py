"""A DeepSpeed ZeRO-3 engine around a plain model, and the few things ufork asks of it.

ufork owns the unit of work: losses are normalised by the whole job's targets before the backward pass, so the engine
must neither divide by accumulation steps nor average over ranks. Gradients stay on the ranks until one reduction a
step.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import deepspeed
import torch
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from ufork.errors import ConfigError
from ufork.parallel.world import World

Precision = Literal["fp32", "bf16"]

OWNED_KEYS = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer",
        "scheduler",
        "fp16",
        "bf16",
        "zero_allow_untested_optimizer",
        "zero_optimization.stage",
    }
)
"""Keys of DeepSpeed's configuration that follow from the recipe and may not be set beside it."""


def engine_config(precision: Precision, *, clip_norm: float, extra: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration: what ufork owns, with an expert's `extra` keys merged in.

    Raises:
        ConfigError: `extra` sets a key of OWNED_KEYS.
    """
    zero = extra.get("zero_optimization", {})
    owned = sorted(OWNED_KEYS & {*extra, *(f"zero_optimization.{key}" for key in zero)})
    if owned:
        raise ConfigError(
            f"train.deepspeed: {', '.join(owned)} follow(s) from the recipe's other values; set those, leave this out"
        )
    return {
        "steps_per_print": 1 << 62,
        **extra,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,
        "bf16": {"enabled": precision == "bf16"},
        # DeepSpeed's own linear function would save memory that is not short, and costs a tenth of a step on a CPU
        "zero_optimization": {"memory_efficient_linear": False, **zero, "stage": 3},
        "zero_allow_untested_optimizer": True,
    }


class Engine:
    """One stage's model, sharded over its world by ZeRO-3."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: dict[str, Any],
        world: World,
        *,
        gathered_whole: Sequence[type[nn.Module]] = (),
    ):
        """Shards `model`.

        Args:
            gathered_whole: modules whose parameters are fetched together, not by one small gather per layer.
        """
        deepspeed_logger.setLevel(logging.WARNING)
        # Its shared-memory collectives spin without a time-out when a peer dies, and cost a compilation; gloo does not.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.world = world
        present = [kind for kind in gathered_whole if any(isinstance(module, kind) for module in model.modules())]
        if present:
            deepspeed.utils.set_z3_leaf_modules(model, present)
            for module in model.modules():
                if isinstance(module, tuple(present)):
                    module.register_forward_pre_hook(_join_backward)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Around all forwards and backwards of a step: gradients are reduced once, at its end."""
        with self._engine.coalesce_grad_reduction():
            yield

    def forward(self, *args: Any) -> Tensor:
        """The model's output."""
        return self._engine(*args)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`, which is this rank's part of a sum over all ranks."""
        self._engine.backward(loss * self.world.size, scale_wrt_gas=False)  # ZeRO averages over the ranks

    def step(self, learning_rate: float) -> float:
        """Clips, steps, and returns the gradient norm before clipping over all ranks.

        A norm that is not finite, which all ranks see alike, leaves weights and optimizer as they were.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def full_weights(self) -> dict[str, Tensor]:
        """Every parameter by its name, whole, fp32, on the CPU; all ranks must call, only the leader gets them."""
        weights = {}
        for name, parameter in self._engine.module.named_parameters():
            whole = self._whole(parameter)
            if self.world.is_leader:
                weights[name] = whole.detach().float().cpu().clone()
        return weights

    @staticmethod
    def _whole(parameter: nn.Parameter) -> Tensor:
        if parameter.requires_grad:
            return safe_get_full_fp32_param(parameter)
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def close(self) -> None:
        """Frees the engine's hooks and buffers, so that another one can follow in the same process."""
        self._engine.destroy()


def _join_backward(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Has a trained module's input ask for a gradient, even above a frozen part.

    ZeRO-3 learns from the gradient of a module's inputs when its backward pass begins and ends, and without one frees
    the weights before their gradients are added up (seen in DeepSpeed 0.19.8).
    """
    hidden, *others = inputs
    trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    return (hidden.detach().requires_grad_(), *others) if trains and not hidden.requires_grad else None
