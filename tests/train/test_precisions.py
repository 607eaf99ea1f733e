"""A few real steps in each precision: the model learns, masters are fp32, and the codebook does not change."""

from types import SimpleNamespace

import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import open_stage, weights_of
from tests.tiny import packed_sequence, shallow_config, tiny_model
from ufork.errors import ConfigError
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.build_stage import precision_of
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

STEPS, RATE = 8, 1e-3


def run_train(rank_env: RankEnvironment, precision: str):
    """First and last losses, whole weights, and every buffer that holds a codebook."""
    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=60) as world:
        model = tiny_model(shallow_config())
        sequences = GlobalBatchSize(understanding=2, generation=2)
        config = TrainConfig(precision=precision, weight_decay=0.1, global_batch_size=sequences)
        stage = open_stage(world, config, model=model, seq_len=24)
        seed = world.rank
        sequences = {task: [packed_sequence(task, texts=[[5, 6, 7], [8, 9]], seq_len=24, seed=seed)] for task in Task}
        losses = [run_step(stage, sequences, RATE).losses for _ in range(STEPS)]
        return losses, weights_of(stage, shallow_config()), codebooks_of(model)


def codebooks_of(model):
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith("codebook_KE")}


@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def trained(request):
    return request.param, run_on_ranks(run_train, 2, request.param)[0]


def test_both_tasks_learn(trained):
    _, (losses, _, _) = trained
    assert all(losses[-1][task] < 0.99 * losses[0][task] for task in Task)


def test_weights_are_whole_fp32_and_finer_than_the_precision_of_the_steps(trained):
    precision, (_, weights, _) = trained
    expected = {name: parameter.shape for name, parameter in tiny_model(shallow_config()).named_parameters()}
    assert {name: weight.shape for name, weight in weights.items()} == expected
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    norm = weights["trunk.stack.layers.0.mlp_norm.weight"]
    changed = norm != 1
    assert changed.all(), "steps far below bf16's resolution at 1 must add up"
    assert not torch.equal(norm.bfloat16().float(), norm)


def test_no_value_of_the_codebook_changes(trained):
    _, (_, _, codebooks) = trained
    expected = {
        name: buffer for name, buffer in tiny_model(shallow_config()).named_buffers() if name.endswith("codebook_KE")
    }
    assert codebooks.keys() == expected.keys() and len(codebooks) == 2
    for name, codebook in codebooks.items():
        assert torch.equal(codebook.float(), expected[name]), name


@pytest.mark.parametrize(
    ("device", "native_bf16", "chosen"),
    [("cuda", True, "bf16"), ("cuda", False, "fp32"), ("cpu", True, "bf16"), ("cpu", False, "fp32")],
)
def test_auto_is_bf16_only_where_all_devices_compute_it_natively(device, native_bf16, chosen):
    world = SimpleNamespace(device=torch.device(device), native_bf16=native_bf16)
    assert precision_of(TrainConfig(precision="auto"), world) == chosen
    assert precision_of(TrainConfig(precision="fp32"), world) == "fp32"


def test_bf16_is_refused_on_gpus_that_emulate_it_and_allowed_on_every_cpu():
    bf16 = TrainConfig(precision="bf16")
    with pytest.raises(ConfigError, match=r"train.precision=bf16: .*compute capability 8.0 .*train.precision=auto"):
        precision_of(bf16, SimpleNamespace(device=torch.device("cuda"), native_bf16=False))
    assert precision_of(bf16, SimpleNamespace(device=torch.device("cpu"), native_bf16=False)) == "bf16"
