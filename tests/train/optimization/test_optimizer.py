"""The optimizer: its parameters, which of them decay, and the fused kernel."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.parallel.engine.fused_adam import FusedAdam
from tests.tiny import tiny_config, tiny_model
from ufork.train.config import TrainConfig
from ufork.train.optimization.optimizer import build_optimizer
from ufork.train.optimization.parameter_groups import freeze_except
from ufork.train.stage_module import StageModule

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def loss_of(config, tied=False):
    loss = StageModule(tiny_model(tiny_config(tie_word_embeddings=tied)), config)
    freeze_except(loss, config.trainable)
    return loss


@pytest.mark.parametrize("trainable", ["all", ("projector", "rq_head"), ("text_head", "loss_weights")])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_every_trained_parameter_is_in_exactly_one_group(trainable, optimizer):
    config = TrainConfig(trainable=trainable, optimizer=optimizer, weight_decay=0.1, loss_weighting="uncertainty")
    loss = loss_of(config)
    grouped = [id(p) for group in build_optimizer(loss, config, CPU).param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in loss.parameters() if p.requires_grad)


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_decay_and_nothing_else_does(tied):
    config = TrainConfig(weight_decay=0.1, loss_weighting="uncertainty")
    loss = loss_of(config, tied)
    groups = build_optimizer(loss, config, CPU).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decayed = {id(parameter) for parameter in groups[0]["params"]}
    matrices = {id(module.weight) for module in loss.modules() if isinstance(module, nn.Linear)}
    text_head = loss.model.branches["understanding"].head.weight
    assert decayed == matrices | (set() if tied else {id(text_head)})


def test_adamw_gets_the_rates_of_the_recipe():
    config = TrainConfig(learning_rate=0.02, beta1=0.8, beta2=0.9)
    optimizer = build_optimizer(loss_of(config), config, CPU)
    assert type(optimizer) is torch.optim.AdamW
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(0.02, (0.8, 0.9))}


@pytest.mark.parametrize(("muon_rate", "expected"), [(None, 0.02), (0.06, 0.06)])
def test_muon_has_a_rate_of_its_own_and_decays_its_matrices(muon_rate, expected):
    config = TrainConfig(optimizer="muon", learning_rate=0.02, muon_learning_rate=muon_rate, weight_decay=0.1)
    matrices, *others = build_optimizer(loss_of(config), config, CPU).param_groups
    assert matrices["lr"] == pytest.approx(expected) and matrices["weight_decay"] == 0.1
    assert all(parameter.dim() == 2 for parameter in matrices["params"])
    assert {group["lr"] for group in others} == {0.02}


def pretend_apex(monkeypatch, **members):
    for name in ("amp_C", "apex", "apex.optimizers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules["apex.optimizers"]).update(members)


@pytest.mark.parametrize(
    ("device", "optimizer", "expected", "reason"),
    [
        (CUDA, "adamw", FusedAdam, "NVIDIA apex's FusedAdam (installed with its CUDA extensions)"),
        (CPU, "adamw", torch.optim.AdamW, "torch's fused AdamW (no CUDA device)"),
        (CUDA, "sgd", torch.optim.SGD, "torch's SGD (train.optimizer is sgd)"),
    ],
)
def test_nvidia_apex_is_used_on_cuda_and_the_choice_is_logged(monkeypatch, caplog, device, optimizer, expected, reason):
    pretend_apex(monkeypatch, FusedAdam=FusedAdam)
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1)
    with caplog.at_level("INFO"):
        built = build_optimizer(loss_of(config), config, device)
    assert type(built) is expected
    assert [group["weight_decay"] for group in built.param_groups] == [0.1, 0.0]
    assert f"optimizer: {reason}" in caplog.text


def test_other_packages_named_apex_are_not_used(monkeypatch, caplog):
    config = TrainConfig()
    pretend_apex(monkeypatch)
    with caplog.at_level("INFO"):
        assert type(build_optimizer(loss_of(config), config, CUDA)) is torch.optim.AdamW
        monkeypatch.delitem(sys.modules, "apex.optimizers")
        assert type(build_optimizer(loss_of(config), config, CUDA)) is torch.optim.AdamW
    reason = "optimizer: torch's fused AdamW (NVIDIA apex is not installed with its CUDA extensions)"
    assert caplog.text.count(reason) == 2
