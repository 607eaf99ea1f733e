"""Steps with a loss or gradient that is not finite are skipped on all ranks and counted; too many end the run."""

from pathlib import Path

import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import open_stage, weights_of
from tests.tiny import packed_sequence, shallow_config, tiny_model
from ufork.errors import NonFiniteError
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import World, join_world
from ufork.run_folder import PhaseFolder
from ufork.train.config import GlobalBatchSize, TrainConfig, WandbConfig
from ufork.train.loop import train_phase
from ufork.train.session import Session
from ufork.train.step import run_step
from ufork.train.telemetry import Telemetry
from ufork.vocabulary import Task

BAD_TOKEN = 200
"""Token whose embedding is NaN, and with it the loss of a packed sequence that has it."""
CONFIG = TrainConfig(
    steps=9,
    global_batch_size=GlobalBatchSize(understanding=2, generation=2),
    learning_rate=0.01,
    precision="fp32",
    max_nonfinite_steps=1,
    wandb=WandbConfig(mode="disabled"),
)


def model_with_a_bad_token():
    model = tiny_model(shallow_config(tie_word_embeddings=False))
    model.trunk.token_embedding.weight.data[BAD_TOKEN] = torch.nan
    return model


def sequences_of(world: World, *, seed=0, bad_rank=None):
    """Returns one packed sequence of each task per rank; `bad_rank` has the bad token in that of generation."""
    seed = 10 * seed + 2 * world.rank
    bad = [BAD_TOKEN] * (world.rank == bad_rank)
    return {
        Task.UNDERSTANDING: [packed_sequence(Task.UNDERSTANDING, texts=[[5, 6 + seed]], seq_len=16, seed=seed)],
        Task.GENERATION: [packed_sequence(Task.GENERATION, texts=[[7, 8 + seed], [9, *bad]], seq_len=32, seed=seed)],
    }


def break_gradients(model, world: World, when):
    """Makes the trunk's gradient infinite on rank 1 while `when()`; losses stay finite."""

    def hook(module, inputs, output):
        if when() and world.rank == 1 and output.requires_grad:
            output.register_hook(lambda gradient: gradient * torch.inf)

    model.trunk.stack.register_forward_hook(hook)


def train(world: World, config: TrainConfig, faults: list[str | None], name: str):
    """Takes one step per fault; its sequences depend on the number of finite steps before."""
    model, current = model_with_a_bad_token(), []
    break_gradients(model, world, lambda: current[-1] == "gradient")
    stage = open_stage(world, config, model=model, seq_len=32, name=name)
    results = []
    for fault in faults:
        sound = sum(result.is_finite for result in results)
        current.append(fault)
        sequences = sequences_of(world, seed=sound, bad_rank=1 if fault == "loss" else None)
        results.append(run_step(stage, sequences, config.learning_rate))
    weights = weights_of(stage, model.config)
    stage.engine.close()
    return results, weights


def run_with_and_without_faults(rank_env: RankEnvironment, config: TrainConfig):
    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=60) as world:
        return (
            train(world, config, [None, "loss", "gradient", None], "faults"),
            train(world, config, [None, None], "none"),
        )


@pytest.fixture(
    scope="module",
    params=[
        {"precision": "fp32"},
        pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param({"optimizer": "muon"}, marks=pytest.mark.slow),
    ],
    ids=lambda changed: "-".join(changed.values()),
)
def outcomes(request):
    """Returns (results, weights) with faults and without, from each of two ranks."""
    return run_on_ranks(run_with_and_without_faults, 2, CONFIG.model_copy(update=request.param))


def test_all_ranks_agree_on_which_steps_are_skipped(outcomes):
    for (results, _), _ in outcomes:
        assert [result.is_finite for result in results] == [True, False, False, True]
        assert results[1].losses[Task.UNDERSTANDING] > 0
        assert results[1].losses[Task.GENERATION] != results[1].losses[Task.GENERATION], "not a number"
        assert all(loss > 0 for loss in results[2].losses.values())


def test_skipped_steps_leave_no_trace_in_weights_and_optimizer(outcomes):
    """The steps around them are those of a run that never had them."""
    (results, weights), (sound_results, sound_weights) = outcomes[0]
    for result, sound in zip((results[0], results[3]), sound_results, strict=True):
        assert result.losses == sound.losses
        assert result.gradient_norm == pytest.approx(sound.gradient_norm, rel=1e-7), "a sum's rounding may differ"
    assert all(torch.equal(weights[name].nan_to_num(), sound_weights[name].nan_to_num()) for name in weights)
    start = dict(model_with_a_bad_token().named_parameters())
    assert not torch.equal(weights["trunk.projector.first.weight"], start["trunk.projector.first.weight"])


def test_suspect_samples_are_those_of_the_bad_sequence_or_all_without_one(outcomes):
    (first, _), (second, _) = (with_faults for with_faults, _ in outcomes)
    assert first[1].suspect_samples == {Task.UNDERSTANDING: (), Task.GENERATION: ()}
    assert second[1].suspect_samples == {Task.UNDERSTANDING: (), Task.GENERATION: ("s12", "s13")}
    assert first[2].suspect_samples == {Task.UNDERSTANDING: ("s10",), Task.GENERATION: ("s10", "s11")}


class AlwaysBad:
    """A stream whose second step and all after it break on rank 1."""

    def __init__(self, world):
        self.world, self.step = world, 0

    def next_step(self):
        self.step += 1
        return sequences_of(self.world, bad_rank=1 if self.step > 1 else None)


def run_until_the_error(rank_env: RankEnvironment, folder: Path):
    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=60) as world:
        stage = open_stage(world, CONFIG, model=model_with_a_bad_token(), seq_len=32)
        telemetry = Telemetry(CONFIG, PhaseFolder(folder), phase="all", run_config={}, is_leader=stage.bridge.is_leader)
        session = Session(config=CONFIG, stage=stage, stream=AlwaysBad(world), telemetry=telemetry)
        with pytest.raises(NonFiniteError) as raised:
            train_phase(session)
        return str(raised.value)


def test_too_many_skipped_steps_end_every_rank_with_step_task_and_samples(tmp_path):
    for message in run_on_ranks(run_until_the_error, 2, tmp_path):
        assert "step 2: losses {'generation': nan}" in message, "steps 1 and 2 break; one is tolerated"
        assert "train.max_nonfinite_steps=1" in message
        assert "Suspect samples: {'generation': ['s2', 's3']}" in message
