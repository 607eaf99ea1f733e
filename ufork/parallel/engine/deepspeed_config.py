"""DeepSpeed's configuration: what ufork derives from the recipe, merged with `train.deepspeed`.

    train.deepspeed -> every key checked by DeepSpeed's own parser -> one configuration for `deepspeed.initialize`

For a wrong value DeepSpeed raises what its code happens to raise (TypeError, AttributeError, AssertionError); a user
gets an error that names the key.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from deepspeed.runtime.config import DeepSpeedConfig
from pydantic import ValidationError

from ufork.errors import ConfigError, UforkError
from ufork.parallel.config import REDUCE_BUCKET_NUMBERS

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
        "timers",
        "zero_allow_untested_optimizer",
        "zero_optimization.stage",
    }
)
"""Keys of DeepSpeed's configuration that ufork sets, most by the recipe; setting them is refused."""


def engine_config(
    precision: Precision, *, max_grad_norm: float, num_reduced: int, extra: dict[str, Any]
) -> dict[str, Any]:
    """Returns DeepSpeed's configuration: the keys that ufork owns, merged with the user's `extra` keys.

    Args:
        precision: precision of the passes.
        max_grad_norm: norm to which the job's gradients are clipped; 0: they are not.
        num_reduced: parameters whose gradients this rank reduces with other replicas.
        extra: `train.deepspeed` of the recipe.

    Raises:
        ConfigError: `extra` sets a key of OWNED_KEYS, or DeepSpeed refuses a value; the message names the key.
    """
    zero = extra.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"train.deepspeed.zero_optimization: {zero!r}: expected keys and values of DeepSpeed's")
    owned = sorted(OWNED_KEYS & {*extra, *(f"zero_optimization.{key}" for key in zero)})
    if owned:
        raise ConfigError(
            f"train.deepspeed: {', '.join(owned)} cannot be set here, since ufork sets them, most by other values of"
            " the recipe; remove them and set those"
        )
    config = {
        "steps_per_print": 1 << 62,
        **extra,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": precision == "bf16"},
        # on by default: from the third step on, every forward pass would wait for all that runs on the GPU, transfers
        # to ranks that wait for this one included
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": {
            # DeepSpeed's own linear function saves memory that is not scarce and costs a tenth of a step on a CPU
            "memory_efficient_linear": False,
            "reduce_bucket_size": max(min(REDUCE_BUCKET_NUMBERS, num_reduced), 1),
            **zero,
            "stage": 3,
        },
        "zero_allow_untested_optimizer": True,
    }
    for key in extra:
        _require_accepted(key, {name: value for name, value in config.items() if name == key or name not in extra})
    return config


def _require_accepted(key: str, config: dict[str, Any]) -> None:
    """Raises ConfigError if DeepSpeed refuses `config`, in which `key` is the only one of the user's."""
    if key == "steps_per_print" and not isinstance(config[key], int):  # DeepSpeed fails with it in the first step
        raise ConfigError(f"train.deepspeed.{key}: {config[key]!r}: expected a number of steps")
    try:
        DeepSpeedConfig(config)
    except ValidationError as error:
        first, *_ = error.errors()
        place = ".".join(map(str, (key, *first["loc"])))
        raise ConfigError(
            f"train.deepspeed.{place}: {first['input']!r}: DeepSpeed refuses it: {first['msg']}"
        ) from None
    except Exception as error:
        raise ConfigError(
            f"train.deepspeed.{key}: {config[key]!r}: DeepSpeed refuses it: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def naming_keys(extra: Mapping[str, Any]) -> Iterator[None]:
    """Encloses the construction of an engine, in which DeepSpeed refuses values that its parser accepts.

    Raises:
        ConfigError: DeepSpeed fails, and not because memory or a rank is missing; names the keys of `extra`.
    """
    try:
        yield
    except (UforkError, torch.distributed.DistError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        if not extra or "gloo" in str(error) or "NCCL" in str(error):
            raise
        raise ConfigError(
            f"train.deepspeed: {', '.join(sorted(extra))}: DeepSpeed cannot start with these values:"
            f" {type(error).__name__}: {error}"
        ) from error
