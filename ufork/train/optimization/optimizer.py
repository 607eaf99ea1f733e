"""The optimizer that a ZeRO engine steps: AdamW (arXiv 1711.05101) or plain SGD, with decay of matrices only."""

import logging

import torch
from torch import nn

from ufork.model.layers.apex import FUSED_ADAM, find_apex_kernel
from ufork.model.unifork import TIED_HEAD
from ufork.train.config import TrainConfig
from ufork.train.stage_module import StageModule

log = logging.getLogger(__name__)


def is_decayed(name: str, parameter: nn.Parameter, *, tied: bool = False) -> bool:
    """Returns whether a parameter decays: matrices do; norms, biases, embeddings, tied heads and positions do not."""
    undecayed = ("embedding", "marks", "positions", *([TIED_HEAD] if tied else []))
    return parameter.dim() > 1 and not any(word in name for word in undecayed)


def build_optimizer(module: StageModule, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Returns an optimizer of the parameters that require gradients, in two groups: decayed and not decayed."""
    tied = module.model.config.tie_word_embeddings
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if is_decayed(name, parameter, tied=tied)]
    others = [parameter for name, parameter in trained if not is_decayed(name, parameter, tied=tied)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        log.info("optimizer: torch's SGD (train.optimizer is sgd)")
        return torch.optim.SGD(groups, lr=config.learning_rate)
    betas = (config.beta1, config.beta2)
    if device.type == "cuda" and (fused_adam := find_apex_kernel(FUSED_ADAM)):
        log.info("optimizer: NVIDIA apex's FusedAdam (installed with its CUDA extensions)")
        return fused_adam(groups, lr=config.learning_rate, betas=betas, adam_w_mode=True)
    reason = "NVIDIA apex is not installed with its CUDA extensions" if device.type == "cuda" else "no CUDA device"
    log.info("optimizer: torch's fused AdamW (%s)", reason)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
