"""Training on 1, 2 and 4 ranks is the same training: same losses, same norms, same final weights (fp32)."""

import tempfile
from pathlib import Path

import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import open_stage, weights_of
from tests.tiny import CODEC_SIZES, shallow_config, tiny_tokenizer, write_codes_source
from ufork.data.config import DataConfig, SourceConfig
from ufork.data.stream import TrainingStream
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, PerTask, TrainConfig
from ufork.train.optimization.learning_rate import learning_rate
from ufork.train.step import run_step
from ufork.vocabulary import Task

STEPS, FEW_STEPS = 20, 6


def train(rank_env: RankEnvironment, folder: Path, config: TrainConfig, tied: bool):
    """Losses and norm of each step, and the final weights (on the leader)."""
    torch.set_num_threads(1)
    data = DataConfig(
        understanding=(SourceConfig(folder="tiny"),),
        generation=(SourceConfig(folder="tiny"),),
        seq_len=200,
        num_lanes=4,
    )
    sequences = {task: getattr(config.global_batch_size, task) for task in Task}
    with join_world(rank_env, timeout_seconds=60) as world:
        stream = TrainingStream(
            data,
            tiny_tokenizer(),
            codec=CODEC_SIZES,
            global_batch_size=sequences,
            replica=world.coordinate.dp_rank,
            num_replicas=world.dp_group.size(),
            folder=folder,
            seed=3,
        )
        model = shallow_config(tie_word_embeddings=tied)
        stage = open_stage(world, config, model=model, seq_len=200)
        figures = []
        for step in range(config.steps):
            result = run_step(stage, stream.next_step(), learning_rate(config, step / config.steps))
            figures.append([*result.losses.values(), result.gradient_norm])
        return torch.tensor(figures), weights_of(stage, model)


@pytest.fixture(scope="module")
def source_folder():
    with tempfile.TemporaryDirectory() as folder:
        write_codes_source(Path(folder) / "tiny", num_samples=60)
        yield Path(folder)


CASES = {
    # SGD, since AdamW hides a wrong scale of the gradients
    "sgd": TrainConfig(
        steps=STEPS,
        global_batch_size=GlobalBatchSize(understanding=4, generation=4),
        optimizer="sgd",
        learning_rate=0.3,
        max_grad_norm=1.0,
        precision="fp32",
    ),
    "adamw": TrainConfig(
        steps=FEW_STEPS,
        global_batch_size=GlobalBatchSize(understanding=4, generation=2),
        learning_rate=1e-3,
        weight_decay=0.1,
        precision="fp32",
        activation_checkpointing=True,
    ),
    "weighted": TrainConfig(
        steps=FEW_STEPS,
        global_batch_size=GlobalBatchSize(understanding=2, generation=4),
        optimizer="sgd",
        learning_rate=0.1,
        loss_weighting="uncertainty",
        loss_weights=PerTask(understanding=0.7, generation=1.5),
        precision="fp32",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "worlds"), [("sgd", (2, 4)), ("adamw", (2,)), ("weighted", (2,))])
def test_losses_norms_and_weights_are_those_of_one_rank(case, worlds, source_folder):
    config = CASES[case]
    (expected, expected_weights), *_ = run_on_ranks(train, 1, source_folder, config, case != "adamw")
    earlier, later = expected[:, 1].chunk(2)
    assert later.mean() < earlier.mean(), "it should learn something"
    for num_ranks in worlds:
        (figures, weights), *_ = run_on_ranks(train, num_ranks, source_folder, config, case != "adamw")
        torch.testing.assert_close(figures, expected, rtol=1e-5, atol=1e-6)
        assert weights.keys() == expected_weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected_weights[name], rtol=1e-4, atol=1e-5, msg=name)
