"""The ZeRO-3 engine against a plain torch loop: the whole model, and groups above or below frozen ones."""

import itertools

import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import open_stage, weights_of
from tests.tiny import packed_sequence, shallow_config, tiny_model
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import World, join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.optimization.parameter_groups import freeze_except
from ufork.train.stage_module import StageModule
from ufork.train.step import run_step
from ufork.vocabulary import Task

STEPS, RATE, CLIP_NORM = 4, 0.3, 1.0
TRAINED = {
    "all": ("all", tuple(Task)),
    "generation": (("generation", "rq_head"), (Task.GENERATION,)),
    "understanding": (("understanding",), (Task.UNDERSTANDING,)),
    "alignment": (("projector", "rq_head"), tuple(Task)),
    "trunk": (("trunk",), tuple(Task)),
}
"""Trained groups of parameters, and tasks of the packed sequences, by name of the case."""


def config_of(trainable, tasks) -> TrainConfig:
    sequences = GlobalBatchSize(**{task: 3 * (task in tasks) for task in Task})
    return TrainConfig(
        trainable=trainable, global_batch_size=sequences, optimizer="sgd", max_grad_norm=CLIP_NORM, precision="fp32"
    )


def sequences_of(tasks):
    texts = {task: [[5, 6, 7, 8], [9, 10, 11], [12, 13]] for task in tasks}
    return {task: [packed_sequence(task, texts=[text], seq_len=24) for text in texts[task]] for task in tasks}


def run_on_engines(rank_env: RankEnvironment):
    """Norms of the steps and whole weights of every case, one engine after the other."""
    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=60) as world:
        return {case: train_on_engine(world, *case) for case in itertools.product(TRAINED, (False, True))}


def train_on_engine(world: World, name: str, recompute: bool):
    trainable, tasks = TRAINED[name]
    config = config_of(trainable, tasks).model_copy(update={"activation_checkpointing": recompute})
    model = shallow_config(tie_word_embeddings=False)
    stage = open_stage(world, config, model=model, seq_len=24, name=f"{name} {recompute}")
    norms = [run_step(stage, sequences_of(tasks), RATE).gradient_norm for _ in range(STEPS)]
    weights = weights_of(stage, model)
    stage.engine.close()
    return norms, weights


def train_plainly(config: TrainConfig, tasks: tuple[Task, ...]):
    loss = StageModule(tiny_model(shallow_config(tie_word_embeddings=False)), config)
    freeze_except(loss, config.trainable)
    trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    norms = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        for sequences in sequences_of(tasks).values():
            for sequence in sequences:
                loss(sequence, sum(sequence.num_targets for sequence in sequences))[0].backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)))
        optimizer.step()
    return norms, dict(loss.model.named_parameters())


@pytest.fixture(scope="module")
def on_engines():
    return run_on_ranks(run_on_engines, 1)[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_norms_and_weights_are_those_of_plain_sgd(on_engines, name, recompute):
    trainable, tasks = TRAINED[name]
    expected_norms, expected = train_plainly(config_of(trainable, tasks), tasks)
    norms, weights = on_engines[name, recompute]
    assert norms == pytest.approx(expected_norms, rel=1e-5)
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected[key].detach(), rtol=1e-5, atol=1e-6, msg=key)
