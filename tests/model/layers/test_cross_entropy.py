"""The loss computed in chunks of the vocabulary against torch's over the whole vocabulary."""

from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ufork.model.layers import cross_entropy
from ufork.model.layers.cross_entropy import (
    PLAIN_CHUNKS,
    ChunkKernels,
    add_chunk,
    elementwise_chunk_error,
    sum_cross_entropy,
)
from ufork.model.layers.linear import ONEDNN_PRODUCTS, TORCH_PRODUCTS
from ufork.model.text_head import TextHead
from ufork.vocabulary import IGNORED_LABEL

ELEMENTWISE_CHUNKS = ChunkKernels(add=add_chunk, error=elementwise_chunk_error)


def inputs_of(num_rows, width, vocab_size, with_bias, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_rows, width), (vocab_size, width)] + [(vocab_size,)] * with_bias
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    targets = torch.randint(vocab_size, (num_rows,), generator=generator)
    return [*tensors, *[None] * (not with_bias)], targets


def loss_and_gradients(function, tensors, targets, scale=1.0):
    """Gradients of a multiple, since a step's loss is always divided by its targets."""
    loss = function(*tensors, targets)
    given = [tensor for tensor in tensors if tensor is not None]
    return [loss, *torch.autograd.grad(scale * loss, given)]


def whole(hidden, weight, bias, targets):
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="sum")


@given(
    num_rows=st.integers(0, 6),
    width=st.integers(1, 8),
    vocab_size=st.integers(1, 40),
    with_bias=st.booleans(),
    chunk_logits=st.integers(1, 300),
    scale=st.floats(-2, 2),
    seed=st.integers(0, 99),
    kernels=st.sampled_from([PLAIN_CHUNKS, ELEMENTWISE_CHUNKS]),
    products=st.sampled_from([TORCH_PRODUCTS, ONEDNN_PRODUCTS]),
)
def test_loss_and_gradients_equal_torchs_for_any_chunk_size(
    num_rows, width, vocab_size, with_bias, chunk_logits, scale, seed, kernels, products
):
    tensors, targets = inputs_of(num_rows, width, vocab_size, with_bias, seed)
    with mock.patch.object(cross_entropy, "CHUNK_LOGITS", chunk_logits):
        found = loss_and_gradients(
            partial(sum_cross_entropy, kernels=kernels, products=products), tensors, targets, scale
        )
    for ours, torchs in zip(found, loss_and_gradients(whole, tensors, targets, scale), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1e4, -1e4])
def test_huge_logits_do_not_overflow(factor):
    tensors, targets = inputs_of(5, 4, 30, True, 0)
    tensors[0] = (tensors[0] * factor).detach().requires_grad_()
    with mock.patch.object(cross_entropy, "CHUNK_LOGITS", 35):
        found = loss_and_gradients(sum_cross_entropy, tensors, targets)
    for ours, torchs in zip(found, loss_and_gradients(whole, tensors, targets), strict=True):
        torch.testing.assert_close(ours, torchs)


def shapes_of_computed_logits(chunk_logits):
    """Returns the shapes of the chunks that a loss of 6 x 100 logits and its gradients compute."""
    tensors, targets = inputs_of(6, 4, 100, True, 0)
    shapes = []

    def recording(*arguments):
        logits = original(*arguments)
        shapes.append(tuple(logits.shape))
        return logits

    original = cross_entropy._logits
    with (
        mock.patch.object(cross_entropy, "CHUNK_LOGITS", chunk_logits),
        mock.patch.object(cross_entropy, "_logits", recording),
    ):
        sum_cross_entropy(*tensors, targets).backward()
    return shapes


def test_no_chunk_of_logits_is_larger_than_the_limit():
    sizes = [rows * columns for rows, columns in shapes_of_computed_logits(120)]
    assert sum(sizes) == 2 * 600 and max(sizes) <= 120


def test_the_logits_of_an_only_chunk_are_computed_once():
    assert shapes_of_computed_logits(600) == [(6, 100)]


def test_rows_of_large_chunks_are_aligned():
    assert shapes_of_computed_logits(6 * 99) == 2 * [(6, 64), (6, 36)]


def test_bf16_sums_in_fp32_and_gives_gradients_in_bf16():
    tensors, targets = inputs_of(300, 8, 50, True, 0, torch.bfloat16)
    loss, *gradients = loss_and_gradients(sum_cross_entropy, tensors, targets)
    expected, *expected_gradients = loss_and_gradients(whole, tensors, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
    for ours, torchs in zip(gradients, expected_gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, torchs, rtol=0.05, atol=0.05)


def test_the_text_head_predicts_only_positions_with_a_label():
    (hidden, weight, _), targets = inputs_of(6, 4, 30, False, 0)
    labels = targets.clone()
    labels[[0, 3, 4]] = IGNORED_LABEL
    head = TextHead(torch.nn.Parameter(weight.detach()))
    expected = F.cross_entropy(head.logits(hidden), labels, ignore_index=IGNORED_LABEL, reduction="sum")
    torch.testing.assert_close(head(hidden, labels, 3), expected)
    (gradient,) = torch.autograd.grad(head(hidden, labels, 3), hidden)
    assert gradient[labels == IGNORED_LABEL].abs().max() == 0
