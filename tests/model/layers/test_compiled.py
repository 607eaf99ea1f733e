"""Compiled kernels equal plain torch, and one compilation serves packed sequences of all lengths."""

import shutil
from functools import partial

import pytest
import torch

from tests.tiny import packed_sequence, tiny_config, tiny_model
from ufork.model.kernels import compiled_kernels, use_kernels
from ufork.model.layers.cross_entropy import sum_cross_entropy
from ufork.model.layers.depth_attention import depth_attention
from ufork.vocabulary import Task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler"),
]


def depth_inputs(positions):
    return [torch.randn(positions, 4, 3, 8, requires_grad=True) for _ in range(3)]


def gradients_of(function, inputs):
    out = function(*inputs)
    return [out, *torch.autograd.grad(out.sum(), inputs)]


def test_depth_attention_is_compiled_once_and_stores_no_product_of_heads():
    compiled = compiled_kernels().depth_attention
    gradients_of(compiled, depth_inputs(5))
    with torch.compiler.set_stance("fail_on_recompile"):
        for positions in (6, 17, 64):
            inputs = depth_inputs(positions)
            for found, expected in zip(*(gradients_of(f, inputs) for f in (compiled, depth_attention)), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_cross_entropy_is_compiled_once():
    weight = torch.randn(50, 8, requires_grad=True)
    compiled = partial(sum_cross_entropy, kernels=compiled_kernels().chunks)

    def loss_and_gradients(function, rows, seed):
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(rows, 8, generator=generator).requires_grad_()
        targets = torch.randint(50, (rows,), generator=generator)
        loss = function(hidden, weight, None, targets)
        return [loss, *torch.autograd.grad(loss / 3, (hidden, weight))]

    loss_and_gradients(compiled, 5, 0)
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (6, 17, 64, 0):
            results = [loss_and_gradients(function, rows, rows) for function in (compiled, sum_cross_entropy)]
            for found, expected in zip(*results, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_of_compiled_kernels_equals_a_plain_one(recompute):
    plain, compiled = tiny_model(tiny_config()), tiny_model(tiny_config())
    use_kernels(compiled, compiled_kernels())
    compiled.set_recompute(recompute)
    for number, texts in enumerate([[[5, 6, 7], [8, 9]], [[1, 2]], [[3, 4, 5, 6, 7, 8]]]):
        for task in Task:
            sequence = packed_sequence(task, texts=texts, seq_len=40 + number)
            for model in (plain, compiled):
                model.zero_grad()
                model(sequence).backward()
            for name, parameter in plain.named_parameters():
                if parameter.grad is not None:
                    found = compiled.get_parameter(name).grad
                    torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_depth_attention_keeps_nothing_wide_on_a_gpu():
    compiled = compiled_kernels().depth_attention
    shape = (729, 4, 32, 112)
    plain = [torch.randn(shape, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(3)]
    inputs = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in plain]
    gradients_of(compiled, inputs)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = gradients_of(compiled, inputs)
    width = inputs[0].numel() * 2
    assert torch.cuda.max_memory_allocated() - before < 8 * width, "output, its gradient, three gradients, and weights"
    for ours, reference in zip(found, gradients_of(depth_attention, plain), strict=True):
        assert (ours.cpu().float() - reference).norm() / reference.norm() < 0.02
