"""Under ZeRO-3, kernels that write over their arguments, as liger-kernel's do, and compiled ones equal plain torch."""

import shutil
from unittest import mock

import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import open_stage, weights_of
from tests.tiny import packed_sequence, shallow_config, tiny_model
from ufork.model import kernels
from ufork.model.decoder import gated
from ufork.model.kernels import LayerKernels, compiled_kernels
from ufork.model.layers.rotary import rotate
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.step import run_step
from ufork.vocabulary import Task

pytestmark = pytest.mark.slow


class OverwritingRotate(torch.autograd.Function):
    """As liger's: results take the place of the arguments, in both passes, and autograd is not told."""

    @staticmethod
    def forward(ctx, query, key, cos, sin):
        ctx.save_for_backward(cos, sin)
        for x, rotated in zip((query, key), rotate(query, key, cos, sin), strict=True):
            x.data.copy_(rotated)
        return query.view_as(query), key.view_as(key)

    @staticmethod
    def backward(ctx, *gradients):
        cos, sin = ctx.saved_tensors
        for x, rotated in zip(gradients, rotate(*gradients, cos, -sin), strict=True):
            x.data.copy_(rotated)
        return *gradients, None, None


class OverwritingGate(torch.autograd.Function):
    """As liger's: gradients take the place of the arguments, which are saved for the backward pass."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return gated(gate, up)

    @staticmethod
    def backward(ctx, *gradients):
        saved = ctx.saved_tensors
        with torch.enable_grad():
            leaves = [x.detach().clone().requires_grad_() for x in saved]
            found = torch.autograd.grad(gated(*leaves), leaves, gradients[0])
        for x, gradient in zip(saved, found, strict=True):
            x.data.copy_(gradient)
        return tuple(x.detach() for x in saved)


CHOSEN = {
    "plain": LayerKernels,
    "overwriting": lambda: LayerKernels(rotary=OverwritingRotate.apply, gate=OverwritingGate.apply),
    "compiled": compiled_kernels,
}


def run_train(rank_env: RankEnvironment, name: str, recompute: bool):
    torch.set_num_threads(1)
    with (
        join_world(rank_env, timeout_seconds=120) as world,
        mock.patch.object(kernels, "_find_kernels", lambda device: CHOSEN[name]()),
    ):
        sizes = GlobalBatchSize(understanding=2, generation=2)
        config = TrainConfig(
            optimizer="sgd", precision="fp32", global_batch_size=sizes, activation_checkpointing=recompute
        )
        stage = open_stage(world, config, model=tiny_model(shallow_config()), seq_len=24)
        losses = []
        for texts in ([[5, 6, 7], [8, 9]], [[4]], [[1, 2, 3, 4, 5, 6]]):
            sequences = {task: [packed_sequence(task, texts=texts, seq_len=24, seed=world.rank)] for task in Task}
            losses.append(run_step(stage, sequences, 1e-2).losses)
        return losses, weights_of(stage, shallow_config())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "overwriting",
        pytest.param(
            "compiled",
            marks=pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler"),
        ),
    ],
)
def test_training_is_that_of_plain_kernels(name, recompute):
    (found_losses, found), (losses, expected) = (
        run_on_ranks(run_train, 2, chosen, recompute)[0] for chosen in (name, "plain")
    )
    for ours, plain in zip(found_losses, losses, strict=True):
        assert ours == pytest.approx(plain, rel=1e-5)
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-5, msg=key)
