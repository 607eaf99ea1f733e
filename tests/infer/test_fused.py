"""Fused products compute what the layers they replace do, up to rounding, in every use of a model."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import DIMENSIONS, QWEN3, packed_sequence, tiny_config, tiny_model
from ufork.infer.answer import answer_questions
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.draw import draw_codes
from ufork.infer.fused import FusedBlock, FusedLayer, PackedLinear, can_fuse, fuse_products
from ufork.infer.steps import EagerSteps
from ufork.model.decoder import DecoderLayer
from ufork.model.initialization import initialize
from ufork.model.rq_head import DepthBlock
from ufork.vocabulary import Task

PROMPTS = ["a red dog", "x", "three green stars and a house"]
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(not can_fuse(CPU, torch.float32), reason="this CPU has no AVX2, or torch no oneDNN")


@pytest.fixture(scope="module")
def fused(model):
    """The model with large weights, whose biases and norms are random too, so that none can be forgotten."""
    return fused_copy(model)


@pytest.fixture(
    scope="module", params=[{}, {"separate_first_layers": 2}, QWEN3], ids=["Y", "separate first layers", "Qwen3"]
)
def model(request):
    model = tiny_model(tiny_config(**request.param))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        std = 2 * parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 0.3
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=std, generator=generator)
    return model.eval()


def fused_copy(model):
    model = copy.deepcopy(model)
    fuse_products(model)
    return model


@pytest.mark.parametrize("task", Task)
@torch.inference_mode()
def test_the_loss_is_that_of_the_model(model, fused, task):
    packed = packed_sequence(task, texts=[[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
    assert fused(packed).item() == pytest.approx(model(packed).item(), rel=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]])
def test_the_codes_are_those_of_the_model(model, fused, tokenizer, guidance, is_static, prompts):
    def drawn(by):
        config, seeds, steps = DrawConfig(guidance=guidance), range(len(prompts)), EagerSteps(is_static=is_static)
        return draw_codes(by, tokenizer, prompts, config, num_positions=12, seeds=seeds, steps=steps)

    assert drawn(fused).equal(drawn(model))


def test_the_answers_are_those_of_the_model(model, fused, tokenizer):
    shape = (3, 2, 2, DIMENSIONS.codes_per_position)
    codes_BYXC = np.random.default_rng(0).integers(0, DIMENSIONS.codebook_size, shape, dtype=np.uint16)
    config = AnswerConfig(max_tokens=12)
    answers = [answer_questions(by, tokenizer, codes_BYXC, PROMPTS, config, seeds=range(3)) for by in (model, fused)]
    assert answers[0] == answers[1] and len(set(answers[0])) == 3


@pytest.mark.skipif(not can_fuse(CPU, torch.bfloat16), reason="oneDNN has no bf16 products on this CPU")
@pytest.mark.parametrize("task", Task)
@torch.inference_mode()
def test_in_bf16_the_loss_is_that_of_the_model_in_bf16(task):
    model = tiny_model()
    initialize(model, 3)
    packed = packed_sequence(task, texts=[[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
    in_fp32 = model.eval()(packed).item()
    assert fused_copy(model.bfloat16())(packed).item() == pytest.approx(in_fp32, rel=0.01)


def test_replaced_layers_keep_no_second_copy_of_their_weights(model, fused):
    replaced = [module for module in fused.modules() if isinstance(module, FusedLayer | FusedBlock)]
    assert len(replaced) == sum(isinstance(module, DecoderLayer | DepthBlock) for module in model.modules())
    for module in replaced:
        assert all(parameter.dim() == 1 for parameter in module.parameters()), "weights of LayerNorms alone"
    assert isinstance(fused.branches[Task.GENERATION].head.out, PackedLinear)


def test_only_cpus_with_products_of_that_kind_fuse(monkeypatch):
    assert not can_fuse(torch.device("cuda"), torch.float32)
    assert not can_fuse(CPU, torch.float16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not can_fuse(CPU, torch.float32)
