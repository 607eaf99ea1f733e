"""A session keeps the weights of absent stages; as it ends, also with an error, it leaves its groups on the devices."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from tests.nccl_rules import nccl_rules
from tests.ranks import run_on_ranks
from tests.stages import initial_model, tiny_phase
from tests.tiny import shallow_config, tiny_model, tiny_tokenizer, write_codes_source
from ufork.data.config import DataConfig, SourceConfig
from ufork.model.weights import WEIGHTS_NAME, save_weights
from ufork.parallel.config import LayoutConfig
from ufork.parallel.engine.stage_modules import collected_shapes
from ufork.parallel.engine.zero import Engine
from ufork.parallel.layout import make_layout
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.run_folder import RunFolder
from ufork.train.config import GlobalBatchSize, TrainConfig, WandbConfig
from ufork.train.loop import train_phase
from ufork.train.session import Phase, _absent_weights, open_session
from ufork.vocabulary import Task

SOURCE = (SourceConfig(folder="tiny"),)
LAYOUT = LayoutConfig(kind="forked")
TRAINABLE = {"everything": (), "branches": ("understanding", "generation", "rq_head")}
"""What the phases train; where only the branches train, the trunk's engine has no optimizer."""


def train(rank_env: RankEnvironment, folder: Path, fails: bool):
    """Returns how the groups of each phase had been left when its engine was closed, and at the end."""
    torch.set_num_threads(1)
    left, groups = [], []
    close = Engine.close

    def closed(engine):
        left.append({group.ended for group in groups})
        close(engine)

    Engine.close = closed
    try:
        with join_world(rank_env, LAYOUT, timeout_seconds=60) as world:
            for name, trainable in TRAINABLE.items():
                groups.clear()
                phase = Phase(
                    name=name,
                    initial=initial_model(shallow_config()),
                    train=TrainConfig(
                        steps=2,
                        global_batch_size=GlobalBatchSize(understanding=2, generation=2),
                        precision="fp32",
                        wandb=WandbConfig(mode="disabled"),
                        **({"trainable": trainable} if trainable else {}),
                    ),
                    data=DataConfig(understanding=SOURCE, generation=SOURCE, seq_len=192, num_lanes=4),
                    layout=LAYOUT,
                    tokenizer=tiny_tokenizer(),
                    run=RunFolder(folder),
                )
                on_device = dataclasses.replace(world, data_plane=nccl_rules(made=groups))
                with open_session(phase, on_device) as session:
                    train_phase(session)
                    if fails:
                        raise ZeroDivisionError
                left.append({group.ended for group in groups})
    except ZeroDivisionError:
        left.append({group.ended for group in groups})
    return left


@pytest.mark.slow
def test_phases_shut_down_their_groups_with_and_without_an_optimizer(tmp_path):
    write_codes_source(tmp_path / "tiny", num_samples=40)
    assert run_on_ranks(train, 3, tmp_path, False) == [[{"shut down"}] * 4] * 3


@pytest.mark.slow
def test_a_phase_that_fails_aborts_its_groups_before_the_engine_waits_for_the_device(tmp_path):
    write_codes_source(tmp_path / "tiny", num_samples=40)
    assert run_on_ranks(train, 3, tmp_path, True) == [[{"aborted"}] * 2] * 3


def test_the_leader_keeps_copies_of_the_weights_that_no_stage_collects(tmp_path):
    initial = dataclasses.replace(initial_model(shallow_config()), folder=tmp_path / "start")
    expected = {name: weight.detach() for name, weight in tiny_model(shallow_config()).named_parameters()}
    save_weights(initial.folder, expected, initial.config)
    phase = dataclasses.replace(tiny_phase(tmp_path, layout=LAYOUT), initial=initial)
    layout = make_layout(LAYOUT, num_ranks=3, global_batch_size={Task.UNDERSTANDING: 2})
    shapes = collected_shapes(initial.config.model, initial.config.dimensions, layout)
    absent = _absent_weights(phase, layout, shapes)
    with open(initial.folder / WEIGHTS_NAME, "r+b") as file:  # in place, as ufork itself never writes
        file.write(bytes(os.path.getsize(file.name)))
    assert absent.keys() == {name for name in expected if name.startswith("branches.generation.")}
    assert all(torch.equal(weight, expected[name]) for name, weight in absent.items())
