"""Drawings during training: the leader draws, and neither their duration nor their memory can end the job."""

import time

import numpy as np
import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import tiny_phase
from tests.tiny import write_codes_source
from ufork.errors import PeerError
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.run_folder import RunFolder
from ufork.train.loop import Hooks, train_phase
from ufork.train.session import open_session

STEPS, TIMEOUT_SECONDS = 2, 4.0
GRID = np.zeros((4, 4, 3), np.uint8)


def draw_for_long(weights, show_alive):
    """Takes longer than a rank waits for another in a collective."""
    end = time.monotonic() + 1.5 * TIMEOUT_SECONDS
    while time.monotonic() < end:
        show_alive()
        time.sleep(0.05)
    return GRID


def draw_beyond_memory(weights, show_alive):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")


def fail(weights, show_alive):
    raise ZeroDivisionError


def run_phase(rank_env: RankEnvironment, folder, draw_grid):
    """Returns the number of weights at the end, or the error that ended the phase on this rank."""
    torch.set_num_threads(1)
    phase = tiny_phase(folder, steps=STEPS, optimizer="sgd", draw_every_steps=2)
    with join_world(rank_env, timeout_seconds=TIMEOUT_SECONDS) as world, open_session(phase, world) as session:
        try:
            return len(train_phase(session, Hooks(draw_grid=draw_grid)))
        except (PeerError, ZeroDivisionError) as error:
            return repr(error)


@pytest.fixture
def folder(tmp_path):
    write_codes_source(tmp_path / "tiny", num_samples=40)
    return tmp_path


@pytest.mark.slow
def test_a_drawing_that_takes_longer_than_the_timeout_ends_nothing(folder):
    leader, other = run_on_ranks(run_phase, 2, folder, draw_for_long)
    assert leader > 10 and other == 0
    assert RunFolder(folder).phase("all").drawing(STEPS).is_file()


@pytest.mark.slow
def test_a_drawing_that_does_not_fit_into_memory_is_left_out(folder):
    leader, other = run_on_ranks(run_phase, 2, folder, draw_beyond_memory)
    assert leader > 10 and other == 0
    assert not RunFolder(folder).phase("all").drawing(STEPS).exists()


@pytest.mark.slow
def test_a_drawing_that_fails_is_named_by_the_ranks_that_wait(folder):
    leader, other = run_on_ranks(run_phase, 2, folder, fail)
    assert leader == "ZeroDivisionError()"
    assert "waited for the drawings of all after step 2 by the leader, which has failed" in other
