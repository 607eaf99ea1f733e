"""If a rank dies, stops, hangs or raises, all others end in time, and each names that rank and what it waited for."""

import os
import re
import signal
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
from ufork.parallel.transport.roll_call import ANSWER_SECONDS
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

TIMEOUT_SECONDS = 8.0
SLACK_SECONDS = 15.0
"""Time of a pass and of leaving, on a busy machine."""
LAYOUT = LayoutConfig(kind="forked", trunk=StageShape(tp=2), in_flight=2)
COLOCATED = LayoutConfig()
GENERATION_RANK, UNDERSTANDING_RANK, TRUNK_RANK = 3, 2, 0
CONFIG = TrainConfig(global_batch_size=GlobalBatchSize(understanding=2, generation=2), precision="fp32")


def fail(fault: str) -> None:
    if fault == "dies":
        os._exit(9)
    if fault == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "hangs":
        time.sleep(10 * TIMEOUT_SECONDS)
    raise ValueError("bad luck")


def train(rank_env: RankEnvironment, fault: str, faulty_rank: int, layout: LayoutConfig, folder: Path):
    """Runs a step, then one in whose second forward `faulty_rank` fails; writes the others' errors to `folder`."""
    torch.set_num_threads(1)
    sequences = {
        task: [packed_sequence(task, texts=[[5, 6, 7]], seq_len=24, seed=n) for n in range(2)] for task in Task
    }
    began = time.monotonic()
    try:
        with join_world(rank_env, layout, timeout_seconds=TIMEOUT_SECONDS) as world:
            stage = open_stage(world, CONFIG, model=shallow_config(num_key_value_heads=4), layout=layout, seq_len=24)
            forwards = []

            def count(module, inputs):
                forwards.append(1)
                if world.rank == faulty_rank and len(forwards) == steps[world.coordinate.stage] + 2:
                    fail(fault)

            stage.engine._engine.module.register_forward_pre_hook(count)
            steps = {"trunk": 4, "understanding": 2, "generation": 2, "colocated": 2}
            for _ in range(2):
                began = time.monotonic()
                run_step(stage, sequences if stage.reads_data else {}, 0.1)
    except PeerError as error:
        (folder / str(rank_env.rank)).write_text(f"{time.monotonic() - began:.1f} {error}")
        raise


def said_by_rank(folder: Path) -> dict[int, tuple[float, str]]:
    said = {int(path.name): path.read_text().split(" ", 1) for path in folder.iterdir()}
    return {rank: (float(seconds), message) for rank, (seconds, message) in said.items()}


def require_named(messages: dict[int, tuple[float, str]], faulty_rank: int, fault: str) -> None:
    """Requires that every rank names the faulty one, and no other one, as the cause, and then what it waited for."""
    found = {
        "dies": r"does not answer, it died or hangs|is lost, and with it the job's store",
        "stops": r"does not answer, it died or hangs|does not answer, nor does the job's store",
        "hangs": r"waits for no other rank, it is in fail \(test_lost_ranks.py:\d+\)",
        "raises": r"raised ValueError: bad luck",
    }[fault]
    for rank, (seconds, message) in messages.items():
        assert re.match(rf"rank {faulty_rank} \([^()]*\) ({found}): rank {rank} \(", message), message
        assert seconds < TIMEOUT_SECONDS + ANSWER_SECONDS + SLACK_SECONDS, message


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dies", "stops", "hangs", "raises"])
@pytest.mark.parametrize(
    ("layout", "num_ranks", "faulty_rank"),
    [(LAYOUT, 4, GENERATION_RANK), (LAYOUT, 4, TRUNK_RANK), (COLOCATED, 2, 0), (COLOCATED, 2, 1)],
    ids=["generation", "trunk", "colocated, rank 0", "colocated, rank 1"],
)
def test_every_other_rank_names_it_and_what_it_waited_for(fault, layout, num_ranks, faulty_rank, tmp_path, monkeypatch):
    monkeypatch.setattr(local_ranks, "CONSEQUENCE_SECONDS", 3 * TIMEOUT_SECONDS)  # time for all ranks to report
    with pytest.raises((PeerError, ValueError)) as raised:
        run_on_ranks(train, num_ranks, fault, faulty_rank, layout, tmp_path)
    if fault in ("dies", "raises"):
        said = str(raised.value)
        assert "bad luck" in said or f"rank {faulty_rank}: ended with exit code 9" in said
    messages = said_by_rank(tmp_path)
    assert messages.keys() == set(range(num_ranks)) - {faulty_rank}
    require_named(messages, faulty_rank, fault)
    if layout is LAYOUT and faulty_rank == GENERATION_RANK:
        message = messages[TRUNK_RANK][1]
        assert "generation micro-batch" in message and "rank 3 (generation, replica 0 of 1, tp rank 0 of 1)" in message
        assert "during rank 0 (trunk, replica 0 of 1, tp rank 0 of 2): backward of generation micro-batch" in message
