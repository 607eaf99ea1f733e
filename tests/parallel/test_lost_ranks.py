"""If a rank dies, hangs or raises, all ranks end in time, and each reports which rank it waited for, and for what."""

import os
import time
from pathlib import Path

import pytest
import torch

from pipelines.launch import local_ranks
from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.errors import PeerError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

TIMEOUT_SECONDS = 8.0
LAYOUT = LayoutConfig(kind="forked", trunk=StageShape(tp=2), in_flight=2)
GENERATION_RANK, UNDERSTANDING_RANK, TRUNK_RANK = 3, 2, 0
CONFIG = TrainConfig(global_batch_size=GlobalBatchSize(understanding=2, generation=2), precision="fp32")


def fail(fault: str) -> None:
    if fault == "dies":
        os._exit(9)
    if fault == "hangs":
        time.sleep(10 * TIMEOUT_SECONDS)
    raise ValueError("bad luck")


def train(rank_env: RankEnvironment, fault: str, faulty_rank: int, folder: Path):
    """Runs a step, then one in whose second forward `faulty_rank` fails; writes the others' errors to `folder`."""
    torch.set_num_threads(1)
    sequences = {
        task: [packed_sequence(task, texts=[[5, 6, 7]], seq_len=24, seed=n) for n in range(2)] for task in Task
    }
    began = time.monotonic()
    try:
        with join_world(rank_env, LAYOUT, timeout_seconds=TIMEOUT_SECONDS) as world:
            stage = open_stage(world, CONFIG, model=shallow_config(num_key_value_heads=4), layout=LAYOUT, seq_len=24)
            forwards = []

            def count(module, inputs):
                forwards.append(1)
                if world.rank == faulty_rank and len(forwards) == steps[world.coordinate.stage] + 2:
                    fail(fault)

            stage.engine._engine.module.register_forward_pre_hook(count)
            steps = {"trunk": 4, "understanding": 2, "generation": 2}
            for _ in range(2):
                began = time.monotonic()
                run_step(stage, sequences if stage.reads_data else {}, 0.1)
    except PeerError as error:
        (folder / str(rank_env.rank)).write_text(f"{time.monotonic() - began:.1f} {error}")
        raise


def said_by_rank(folder: Path) -> dict[int, tuple[float, str]]:
    said = {int(path.name): path.read_text().split(" ", 1) for path in folder.iterdir()}
    return {rank: (float(seconds), message) for rank, (seconds, message) in said.items()}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dies", "hangs", "raises"])
@pytest.mark.parametrize("faulty_rank", [GENERATION_RANK, TRUNK_RANK])
def test_every_other_rank_reports_what_it_waited_for_and_ends_in_time(fault, faulty_rank, tmp_path, monkeypatch):
    monkeypatch.setattr(local_ranks, "CONSEQUENCE_SECONDS", 2 * TIMEOUT_SECONDS)  # time for all ranks to report
    with pytest.raises((PeerError, ValueError)) as raised:
        run_on_ranks(train, 4, fault, faulty_rank, tmp_path)
    if fault != "hangs":
        said = str(raised.value)
        assert "bad luck" in said or f"rank {faulty_rank}: ended with exit code 9" in said
    others = {0, 1, 2, 3} - {faulty_rank}
    messages = said_by_rank(tmp_path)
    assert messages.keys() == others
    for rank, (seconds, message) in messages.items():
        assert seconds < 2 * TIMEOUT_SECONDS, message
        assert message.startswith(f"rank {rank} ("), message
        assert "a rank" in message and "see its log" in message
    if faulty_rank == GENERATION_RANK:
        message = messages[TRUNK_RANK][1]
        assert "generation micro-batch" in message and "rank 3 (generation, replica 0 of 1, tp rank 0 of 1)" in message
        assert "during rank 0 (trunk, replica 0 of 1, tp rank 0 of 2): backward of generation micro-batch" in message
