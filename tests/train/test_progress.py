"""When a stage ends, and that its ranks agree on it."""

import json
import time
from pathlib import Path

import pytest
import torch
from ranks import run_on_ranks
from tiny import packed_row, shallow_config, tiny_model

from ufork.parallel.address import RankAddress
from ufork.parallel.world import join_world
from ufork.train.config import TrainConfig, WandbConfig
from ufork.train.loop import train_stage
from ufork.train.progress import progress_of
from ufork.train.telemetry import Telemetry
from ufork.vocabulary import Task


class AloneWith:
    """A rank among others whose clocks show `others`; no one may be asked where `others` is None."""

    def __init__(self, others, *, is_leader=True):
        self.others, self.is_leader = others, is_leader

    def sum(self, *values):
        assert self.others is not None, "a collective that nobody needs"
        return [value + self.others for value in values]


def test_without_a_limit_steps_alone_count_and_no_rank_asks_another():
    config = TrainConfig(steps=8)
    assert progress_of(config, steps=0, seconds=1e9, ranks=AloneWith(None)) == 0
    assert progress_of(config, steps=6, seconds=1e9, ranks=AloneWith(None)) == 0.75


@pytest.mark.parametrize(("steps", "seconds", "expected"), [(2, 5.0, 0.5), (6, 5.0, 0.75), (2, 11.0, 1.1)])
def test_with_a_limit_whichever_is_further_counts(steps, seconds, expected):
    config = TrainConfig(steps=8, limit_seconds=10.0)
    assert progress_of(config, steps=steps, seconds=seconds, ranks=AloneWith(0.0)) == pytest.approx(expected)


def test_only_the_leaders_clock_counts():
    config = TrainConfig(steps=8, limit_seconds=10.0)
    follower = AloneWith(5.0, is_leader=False)
    assert progress_of(config, steps=2, seconds=1e9, ranks=follower) == 0.5


class LateRows:
    """Rows without end; rank 1 is late with its first ones."""

    def __init__(self, rank):
        self.rank, self.steps = rank, 0

    def next_step(self):
        if self.rank == 1 and not self.steps:
            time.sleep(0.5)
        self.steps += 1
        return {Task.UNDERSTANDING: [packed_row(Task.UNDERSTANDING, texts=[[5, 6]], row_tokens=16)]}


def run_until_the_limit(address: RankAddress, folder: Path):
    torch.set_num_threads(1)
    config = TrainConfig(
        steps=1_000_000,
        limit_seconds=3.0,
        warmup_share=0.25,
        learning_rate=0.01,
        precision="fp32",
        log_every_steps=7,
        wandb=WandbConfig(mode="disabled"),
    )
    with join_world(address, timeout_seconds=60) as world:
        telemetry = Telemetry(config, folder, stage="short", run_config={}, speaks=world.is_leader)
        stream = LateRows(world.rank)
        result = train_stage(tiny_model(shallow_config()), config, stream, telemetry, world)
        telemetry.close()
        return stream.steps, len(result.weights)


def test_a_stage_ends_at_its_limit_with_its_schedule_run_through(tmp_path):
    (steps, num_weights), (others_steps, _) = run_on_ranks(run_until_the_limit, 2, tmp_path)
    assert 1 < steps == others_steps < 1_000_000
    assert num_weights
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == steps, "the last steps are reported too"
    rates = [line["learning_rate"] for line in lines]
    assert max(rates) > 0.008 and rates[-1] < 0.002
