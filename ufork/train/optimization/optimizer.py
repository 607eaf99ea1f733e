"""The optimizer that a ZeRO engine steps: AdamW (arXiv 1711.05101), Muon with AdamW, or plain SGD.

Only matrices decay.
"""

import logging
from typing import Any

import torch
from torch import nn

from ufork.model.layers.apex import FUSED_ADAM, find_apex_kernel
from ufork.model.unifork import TIED_HEAD
from ufork.parallel.engine.muon import Muon, takes_muon
from ufork.train.config import TrainConfig
from ufork.train.stage_module import StageModule

log = logging.getLogger(__name__)


def is_decayed(name: str, parameter: nn.Parameter, *, tied: bool = False) -> bool:
    """Returns whether a parameter decays: matrices do; norms, biases, embeddings, tied heads and positions do not."""
    undecayed = ("embedding", "marks", "positions", *([TIED_HEAD] if tied else []))
    return parameter.dim() > 1 and not any(word in name for word in undecayed)


def build_optimizer(module: StageModule, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Returns an optimizer of the parameters that require gradients: Muon's matrices, decayed others, and the rest."""
    tied = module.model.config.tie_word_embeddings
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            if config.optimizer == "muon" and takes_muon(name, parameter.dim()):
                matrices.append(parameter)
            else:
                (decayed if is_decayed(name, parameter, tied=tied) else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        log.info("optimizer: torch's SGD (train.optimizer is sgd)")
        return torch.optim.SGD(groups, lr=config.learning_rate)
    adamw = _adamw(groups, config, device)
    if config.optimizer == "adamw":
        return adamw
    log.info("optimizer: Muon for %d matrices, AdamW for the rest (train.optimizer is muon)", len(matrices))
    ratio = (config.muon_learning_rate or config.learning_rate) / config.learning_rate
    return Muon(matrices, adamw, lr=config.learning_rate, weight_decay=config.weight_decay, rate_ratio=ratio)


def _adamw(groups: list[dict[str, Any]], config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    betas = (config.beta1, config.beta2)
    if device.type == "cuda" and (fused_adam := find_apex_kernel(FUSED_ADAM)):
        log.info("optimizer: NVIDIA apex's FusedAdam (installed with its CUDA extensions)")
        return fused_adam(groups, lr=config.learning_rate, betas=betas, adam_w_mode=True)
    reason = "NVIDIA apex is not installed with its CUDA extensions" if device.type == "cuda" else "no CUDA device"
    log.info("optimizer: torch's fused AdamW (%s)", reason)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
