"""Folders as DeepSpeed saves them after training with ZeRO."""

from pathlib import Path

import torch
from torch import nn

from ufork.parallel.config import LayoutConfig
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world


def save_zero_folder(rank_env: RankEnvironment, model: nn.Module, folder: Path, *, stage: int, tag: str) -> None:
    """Saves `model`, sharded by ZeRO over all ranks, as `folder/tag`; called on each of them."""
    import deepspeed

    from ufork.parallel.engine.zero import _disable_shared_memory_collectives

    with join_world(rank_env, LayoutConfig(), timeout_seconds=60):
        _disable_shared_memory_collectives()  # DeepSpeed would compile them
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        engine.save_checkpoint(str(folder), tag=tag)
