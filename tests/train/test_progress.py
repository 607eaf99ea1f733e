"""The end of a phase, on which all ranks agree."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.run_folder import PhaseFolder
from ufork.train import loop
from ufork.train.config import GlobalBatchSize, TrainConfig, WandbConfig
from ufork.train.loop import train_phase
from ufork.train.progress import progress_of
from ufork.train.session import Session
from ufork.train.telemetry import Telemetry
from ufork.vocabulary import Task


class AloneWith:
    """A rank among others, whose clocks and requests add up to `others`."""

    def __init__(self, others=(0.0, 0.0), *, is_leader=True):
        self.others, self.is_leader = others, is_leader

    def sum(self, *values):
        return [mine + theirs for mine, theirs in zip(values, self.others, strict=True)]


def share(config, steps, seconds, ranks):
    return progress_of(config, steps=steps, seconds=seconds, asked_to_stop=False, ranks=ranks).share


def test_without_a_limit_only_steps_count():
    config = TrainConfig(steps=8)
    assert share(config, 0, 1e9, AloneWith()) == 0
    assert share(config, 6, 1e9, AloneWith()) == 0.75


@pytest.mark.parametrize(("steps", "seconds", "expected"), [(2, 5.0, 0.5), (6, 5.0, 0.75), (2, 11.0, 1.1)])
def test_with_a_limit_the_larger_share_counts(steps, seconds, expected):
    config = TrainConfig(steps=8, limit_seconds=10.0)
    assert share(config, steps, seconds, AloneWith()) == pytest.approx(expected)


def test_only_the_leaders_clock_counts():
    config = TrainConfig(steps=8, limit_seconds=10.0)
    assert share(config, 2, 1e9, AloneWith((5.0, 0.0), is_leader=False)) == 0.5


@pytest.mark.parametrize(("asked", "others", "stopping"), [(False, 0.0, False), (True, 0.0, True), (False, 2.0, True)])
def test_a_stop_request_to_one_rank_stops_all(asked, others, stopping):
    ranks = AloneWith((0.0, others))
    progress = progress_of(TrainConfig(steps=8), steps=1, seconds=0.0, asked_to_stop=asked, ranks=ranks)
    assert progress.stopping == stopping


class LateSequences:
    """Endless packed sequences; rank 1 is late with its first ones."""

    def __init__(self, rank):
        self.rank, self.steps = rank, 0

    def next_step(self):
        if self.rank == 1 and not self.steps:
            time.sleep(0.5)
        self.steps += 1
        return {Task.UNDERSTANDING: [packed_sequence(Task.UNDERSTANDING, texts=[[5, 6]], seq_len=16)]}


def run_until_the_limit(rank_env: RankEnvironment, folder: Path):
    """Trains by a clock that advances by a tenth of a second per step, on rank 1 by a whole one."""
    torch.set_num_threads(1)
    config = TrainConfig(
        steps=1_000_000,
        limit_seconds=3.0,
        warmup_ratio=0.25,
        global_batch_size=GlobalBatchSize(understanding=2, generation=0),
        learning_rate=0.01,
        precision="fp32",
        log_every_steps=7,
        wandb=WandbConfig(mode="disabled"),
    )
    with join_world(rank_env, timeout_seconds=60) as world:
        stage = open_stage(world, config, model=shallow_config(), seq_len=16)
        telemetry = Telemetry(
            config, PhaseFolder(folder), phase="short", run_config={}, is_leader=stage.bridge.is_leader
        )
        stream = LateSequences(world.rank)
        seconds_per_step = 1.0 if world.rank else 0.1
        loop.time = SimpleNamespace(monotonic=lambda: seconds_per_step * stream.steps)
        train_phase(Session(config=config, stage=stage, stream=stream, telemetry=telemetry))
        telemetry.close()
        return stream.steps


@pytest.mark.slow
def test_a_phase_ends_at_its_limit_with_its_schedule_run_through(tmp_path):
    steps, others_steps = run_on_ranks(run_until_the_limit, 2, tmp_path)
    assert steps == others_steps and steps in (30, 31), "the limit, by the leader's clock"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == steps, "the last steps are reported too"
    rates = [line["learning_rate"] for line in lines]
    assert max(rates) > 0.008 and rates[-1] < 0.002
