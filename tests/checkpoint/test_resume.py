"""A stopped phase resumes as if it had not been stopped: bit for bit in its own layout, to rounding in any other.

On CPUs: CUDA kernels may sum in another order each time.
"""

import errno
import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import initial_model
from tests.tiny import shallow_config, tiny_tokenizer, write_codes_source
from ufork.checkpoint.config import CheckpointConfig
from ufork.checkpoint.folder import CheckpointFolder
from ufork.checkpoint.reshape import reshape
from ufork.checkpoint.state import read_state, verify
from ufork.data.config import DataConfig, SourceConfig
from ufork.errors import ConfigError, StoppedError, StorageError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.engine.state_files import WEIGHT, FileImage, StateFiles
from ufork.parallel.layout import num_ranks_of
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.run_folder import RunFolder
from ufork.train.config import GlobalBatchSize, GradNormConfig, TrainConfig, WandbConfig
from ufork.train.loop import Hooks, train_phase
from ufork.train.session import Phase, open_session

STOPPED_AFTER, STEPS = 4, 14
CLOSE = 1e-6
MODEL = shallow_config(num_key_value_heads=4)
DATA = DataConfig(
    understanding=(SourceConfig(folder="tiny"),), generation=(SourceConfig(folder="tiny"),), seq_len=192, num_lanes=4
)
NAME = "all"
CHECKPOINT = RunFolder(Path()).phase(NAME).checkpoints / f"step-{STOPPED_AFTER:08d}"
"""Path of a checkpoint within a run's folder."""


def config_of(precision: str, optimizer: str) -> TrainConfig:
    return TrainConfig(
        steps=STEPS,
        global_batch_size=GlobalBatchSize(understanding=4, generation=4),
        optimizer=optimizer,
        learning_rate=0.1 if optimizer == "sgd" else 1e-3,
        weight_decay=0.1,
        precision=precision,
        loss_weighting="uncertainty",
        log_every_steps=1,
        wandb=WandbConfig(mode="disabled"),
        checkpoint=CheckpointConfig(every_steps=STOPPED_AFTER, keep=9),
    )


def run_phase(
    rank_env: RankEnvironment, layout: LayoutConfig, config: TrainConfig, folder: Path, stop_after: int | None
):
    """Final weights on the leader; None where the phase was stopped."""
    torch.set_num_threads(1)
    phase = Phase(
        name=NAME,
        initial=initial_model(MODEL),
        train=config,
        data=DATA,
        layout=layout,
        tokenizer=tiny_tokenizer(),
        run=RunFolder(folder),
        data_seed=3,
    )
    with join_world(rank_env, layout, timeout_seconds=60) as world, open_session(phase, world) as session:
        stream = session.stream
        asked_to_stop = lambda: bool(stream and stop_after and stream.step >= stop_after)  # noqa: E731
        try:
            return train_phase(session, Hooks(asked_to_stop=asked_to_stop))
        except StoppedError:
            return None


def run_phase_on_a_full_disk(rank_env, layout, config, folder, stop_after, failing_saves):
    """Trains as `run_phase`; the first `failing_saves` files of rank 1 find no space."""
    write, left = FileImage.write, [failing_saves if rank_env.rank else 0]

    def write_if_there_is_space(image, path):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(image, path)

    FileImage.write = write_if_there_is_space
    return run_phase(rank_env, layout, config, folder, stop_after)


def run(layout: LayoutConfig, config: TrainConfig, folder: Path, stop_after: int | None = None):
    num_ranks = num_ranks_of(layout) or LAYOUT_RANKS[layout.describe()]
    return run_on_ranks(run_phase, num_ranks, layout, config, folder, stop_after)[0]


def figures(folder: Path) -> torch.Tensor:
    """Losses and gradient norm of every step, from the reports."""
    lines = [json.loads(line) for line in RunFolder(folder).phase(NAME).metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "each step is reported once"
    return torch.tensor(
        [[line[key] for key in ("loss/understanding", "loss/generation", "gradient_norm")] for line in lines]
    )


LAYOUTS = {
    "dp2": LayoutConfig(),
    "tp2": LayoutConfig(colocated_tp=2),
    "forked": LayoutConfig(kind="forked"),
    "forked tp2": LayoutConfig(kind="forked", trunk=StageShape(tp=2)),
    "forked uneven dp": LayoutConfig(kind="forked", trunk=StageShape(dp=1), generation=StageShape(dp=2)),
}
LAYOUT_RANKS = {"colocated, tp 1": 2, "colocated, tp 2": 2}
PAIRS = [
    ("dp2", "forked"),
    ("forked", "dp2"),
    ("tp2", "dp2"),
    ("forked tp2", "tp2"),
    ("dp2", "forked uneven dp"),
    ("forked uneven dp", "forked tp2"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Final weights and folder of an uninterrupted run with a layout and a config; each is run once."""

    @functools.cache
    def run_once(name: str, config_json: str):
        folder = tmp_path_factory.mktemp("undisturbed")
        write_codes_source(folder / "tiny", num_samples=60)
        return run(LAYOUTS[name], TrainConfig.model_validate_json(config_json), folder), folder

    return lambda name, config: run_once(name, config.model_dump_json())


@pytest.fixture
def folder(tmp_path):
    write_codes_source(tmp_path / "tiny", num_samples=60)
    return tmp_path


def resumed_in(layout: LayoutConfig, config: TrainConfig, folder: Path, origin: Path):
    """Final weights of a run in `folder` that resumes from the checkpoint of `origin` after STOPPED_AFTER steps."""
    shutil.copytree(origin / CHECKPOINT, folder / CHECKPOINT)
    shutil.copy(RunFolder(origin).phase(NAME).metrics, RunFolder(folder).phase(NAME).path)
    return run(layout, config, folder)


BIT_FOR_BIT = [
    ("dp2", "fp32", "sgd"),
    pytest.param("forked tp2", "bf16", "adamw", marks=pytest.mark.slow),
    pytest.param("dp2", "fp32", "adamw", marks=pytest.mark.slow),
    pytest.param("dp2", "bf16", "adamw", marks=pytest.mark.slow),
    pytest.param("forked tp2", "fp32", "adamw", marks=pytest.mark.slow),
    pytest.param("forked tp2", "fp32", "muon", marks=pytest.mark.slow),
    pytest.param("dp2", "bf16", "muon", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "precision", "optimizer"), BIT_FOR_BIT)
def test_resuming_in_the_same_layout_is_exact(name, precision, optimizer, undisturbed, folder):
    config = config_of(precision, optimizer)
    expected, whole = undisturbed(name, config)
    weights = resumed_in(LAYOUTS[name], config, folder, whole)
    assert torch.equal(figures(folder), figures(whole))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp2", "forked"])
def test_factors_of_the_losses_resume_exactly(name, undisturbed, folder):
    weighting = {"loss_weighting": "gradnorm", "gradnorm": GradNormConfig(rate=0.2)}
    config = config_of("fp32", "sgd").model_copy(update=weighting)
    expected, whole = undisturbed(name, config)
    factors = read_state(whole / CHECKPOINT).train_state.loss_balance.factors
    assert len(set(factors.values())) == 2, "they have moved"
    weights = resumed_in(LAYOUTS[name], config, folder, whole)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.mark.slow
def opened(checkpoint: Path) -> StateFiles:
    return StateFiles(checkpoint, read_state(checkpoint).files)


@pytest.mark.slow
def test_a_stop_leaves_the_checkpoint_of_an_undisturbed_run(undisturbed, folder):
    config = config_of("fp32", "adamw")
    _, whole = undisturbed("dp2", config)
    assert run(LAYOUTS["dp2"], config, folder, STOPPED_AFTER + 1) is None
    with opened(folder / CHECKPOINT) as files, opened(whole / CHECKPOINT) as others:
        assert files.kinds() == others.kinds() == {WEIGHT, "exp_avg", "exp_avg_sq"}
        name = "model.trunk.token_embedding.weight"
        assert all(torch.equal(files.whole(kind, name), others.whole(kind, name)) for kind in files.kinds())
    assert CheckpointFolder(RunFolder(folder).phase(NAME).checkpoints).steps() == [STOPPED_AFTER, STOPPED_AFTER + 1]


def test_a_frozen_trunk_does_not_change(undisturbed, folder):
    branches = ("understanding", "generation", "rq_head", "loss_weights")
    config = config_of("fp32", "adamw").model_copy(update={"trainable": branches})
    expected, whole = undisturbed("forked", config)
    saved = whole / CHECKPOINT
    assert sorted(path.name for path in saved.iterdir()) == ["generation", "state.json", "understanding"]
    weights = resumed_in(LAYOUTS["forked"], config, folder, whole)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "optimizer"),
    [*((*pair, "adamw") for pair in PAIRS), ("forked tp2", "dp2", "muon"), ("dp2", "forked tp2", "muon")],
)
def test_resuming_in_another_layout_is_equal_up_to_rounding(first, then, optimizer, undisturbed, folder):
    config = config_of("fp32", optimizer)
    _, whole = undisturbed(first, config)
    resumed_in(LAYOUTS[then], config, folder, whole)
    torch.testing.assert_close(figures(folder)[:, :2], figures(whole)[:, :2], rtol=CLOSE, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_ranks", "optimizer"), [("forked tp2", 3, "adamw"), ("dp2", 1, "adamw"), ("forked tp2", 3, "muon")]
)
def test_training_resumes_from_a_reshaped_checkpoint_bit_for_bit(name, num_ranks, optimizer, undisturbed, folder):
    config = config_of("fp32", optimizer)
    expected, whole = undisturbed(name, config)
    reshape(whole / CHECKPOINT, folder / "reshaped" / CHECKPOINT, num_ranks=num_ranks)
    assert len(verify(folder / "reshaped" / CHECKPOINT, deep=True).files) == num_ranks
    shutil.copy(RunFolder(whole).phase(NAME).metrics, RunFolder(folder / "reshaped").phase(NAME).path)
    weights = resumed_in(LAYOUTS[name], config, folder, folder / "reshaped")
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    with pytest.raises(ConfigError, match="exists already"):
        reshape(whole / CHECKPOINT, folder / "reshaped" / CHECKPOINT, num_ranks=1)


@pytest.mark.slow
def test_a_save_without_space_keeps_other_checkpoints_and_the_run_continues(folder):
    run_on_ranks(run_phase_on_a_full_disk, 2, LAYOUTS["dp2"], config_of("fp32", "sgd"), folder, None, 2)
    assert CheckpointFolder(RunFolder(folder).phase(NAME).checkpoints).steps() == [12, STEPS], (
        "after 4 and 8 there was no space"
    )
    assert not list(RunFolder(folder).phase(NAME).checkpoints.glob("*.unfinished"))


def test_too_many_saves_without_space_end_the_run(folder):
    config = config_of("fp32", "sgd").model_copy(update={"checkpoint": CheckpointConfig(every_steps=4, max_failed=1)})
    with pytest.raises(StorageError, match="No space left.*more than train.checkpoint.max_failed=1"):
        run_on_ranks(run_phase_on_a_full_disk, 2, LAYOUTS["dp2"], config, folder, None, 2)
