"""The probe during training: its results are kept, and training goes on as without it."""

import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import tiny_phase
from tests.tiny import write_codes_source
from ufork.parallel.config import LayoutConfig
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.report.metrics import read_metrics
from ufork.run_folder import RunFolder
from ufork.train.config import GradientConflictConfig
from ufork.train.loop import Hooks, train_phase
from ufork.train.probes.gradient_conflict import gradient_conflict_probe
from ufork.train.session import open_session

STEPS, EVERY_STEPS = 5, 2


def run_phase(rank_env: RankEnvironment, folder, layout: LayoutConfig, every_steps: int):
    """Returns the final weights on the leader."""
    torch.set_num_threads(1)
    probe = GradientConflictConfig(every_steps=every_steps, sequences_per_task=2)
    phase = tiny_phase(folder, layout=layout, steps=STEPS, log_every_steps=1, gradient_conflict=probe)
    with join_world(rank_env, layout, timeout_seconds=60) as world, open_session(phase, world) as session:
        probe = gradient_conflict_probe(phase, world)
        return train_phase(session, Hooks(probes=[probe] if probe else []))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "num_ranks"), [(LayoutConfig(), 1), (LayoutConfig(), 2), (LayoutConfig(kind="forked"), 3)]
)
def test_training_is_the_same_with_and_without_the_probe(tmp_path, layout, num_ranks):
    outcomes = []
    for name, every_steps in (("with", EVERY_STEPS), ("without", 0)):
        folder = tmp_path / name
        write_codes_source(folder / "tiny", num_samples=40)
        weights = run_on_ranks(run_phase, num_ranks, folder, layout, every_steps)[0]
        lines = read_metrics(RunFolder(folder).phase("all").metrics).entries
        losses = [[line["loss/understanding"], line["loss/generation"], line["gradient_norm"]] for line in lines]
        outcomes.append((weights, losses))
    (probed, probed_losses), (expected, expected_losses) = outcomes
    assert probed_losses == expected_losses and len(expected_losses) == STEPS
    assert all(torch.equal(probed[name], expected[name]) for name in expected)
    measured = read_metrics(RunFolder(tmp_path / "with").phase("all").probe("gradient_conflict")).entries
    assert [line["step"] for line in measured] == [2, 4]
    assert measured[0]["cosine/layers.0"] != measured[1]["cosine/layers.0"]
    assert not RunFolder(tmp_path / "without").phase("all").probes.exists()
