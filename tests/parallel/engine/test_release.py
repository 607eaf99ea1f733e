"""Phases that one process trains one after the other leave no tensors behind."""

import gc
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from tests.ranks import run_on_ranks
from tests.stages import open_stage, tiny_phase
from tests.tiny import packed_sequence, shallow_config, write_codes_source
from ufork.parallel.config import LayoutConfig
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.loop import train_phase
from ufork.train.session import open_session
from ufork.train.step import run_step
from ufork.vocabulary import Task

PHASES, LEFT = 3, 0.05
"""Phases in one process, and the share of a phase's bytes that may stay after all of them."""


@dataclass(frozen=True)
class Case:
    optimizer: str = "adamw"
    trainable: object = "all"
    precision: str = "fp32"
    zero: dict = field(default_factory=dict)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    ranks: int = 1


CASES = {
    "adamw": Case(),
    "adamw, bf16, overlap_comm": Case(precision="bf16", zero={"overlap_comm": True}, ranks=2),
    "sgd": Case(optimizer="sgd"),
    "muon": Case(optimizer="muon", ranks=2),
    "frozen trunk": Case(
        trainable=("generation", "rq_head", "understanding"), layout=LayoutConfig(kind="forked"), ranks=3
    ),
    "frozen branches": Case(trainable=("trunk", "projector"), layout=LayoutConfig(kind="forked"), ranks=3),
}


def live_bytes() -> int:
    """Bytes of all tensors in the process."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance asks deprecated objects of torch for their class
        tensors = [
            value
            for value in gc.get_objects()
            if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)  # compiled code's, without bytes
        ]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def train_phases(rank_env: RankEnvironment, case: Case):
    """Returns the bytes before the phases, while each is open, and after all; the stages stay referenced."""
    torch.set_num_threads(1)
    config = TrainConfig(
        trainable=case.trainable,
        global_batch_size=GlobalBatchSize(understanding=2, generation=2),
        optimizer=case.optimizer,
        precision=case.precision,
        deepspeed={"zero_optimization": case.zero},
    )
    with join_world(rank_env, case.layout, timeout_seconds=60) as world:
        before, opened, stages = live_bytes(), [], []
        for phase in range(PHASES):
            stage = open_stage(world, config, model=shallow_config(), layout=case.layout, seq_len=16, name=str(phase))
            own = range(2 // world.dp_group.size())
            for _ in range(3):
                run_step(stage, {t: [packed_sequence(t, texts=[[5, 6]], seq_len=16) for _ in own] for t in Task}, 0.01)
            opened.append(live_bytes())
            stage.engine.close()
            stages.append(stage)
        return before, opened, live_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_closed_engines_free_their_tensors_even_if_referenced(name):
    case = CASES[name]
    for before, opened, after in run_on_ranks(train_phases, case.ranks, case):
        assert opened[0] > 50_000, "a phase has tensors"
        assert opened[-1] < opened[0] * (1 + LEFT), "phases do not pile up"
        assert after - before < LEFT * (opened[0] - before)


@pytest.mark.gpu
def test_closed_engines_free_their_tensors_on_a_gpu():
    ((before, opened, after),) = run_on_ranks(train_phases, 1, Case(precision="bf16"))
    assert after - before < LEFT * (opened[0] - before)


def train_sessions(rank_env: RankEnvironment, folder: Path):
    """Returns the bytes while each of the sessions is open, and after all."""
    torch.set_num_threads(1)
    write_codes_source(folder / "tiny", num_samples=40)
    opened = []
    with join_world(rank_env, timeout_seconds=60) as world:
        for name in map(str, range(PHASES)):
            phase = tiny_phase(folder, name=name, steps=2)
            with open_session(phase, world) as session:
                train_phase(session)
                opened.append(live_bytes())
        del session  # with the saver's host memory for a checkpoint
    return opened, live_bytes()


@pytest.mark.slow
def test_closed_sessions_free_their_tensors(tmp_path):
    ((opened, after),) = run_on_ranks(train_sessions, 1, tmp_path)
    assert opened[-1] < opened[0] * (1 + LEFT), "phases do not pile up"
    assert after < LEFT * opened[0]
