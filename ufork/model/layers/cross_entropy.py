"""Sum of token cross-entropies straight from hidden states, without ever holding the logits of the whole vocabulary.

    for each slice of the vocabulary: logits of the slice -> running log-sum-exp, the target's logit where it falls

The backward pass computes each slice again. (Liger-Kernel, arXiv 2410.10989, walks over rows; walking over the
vocabulary keeps one pass over the hidden states per slice and is the form that tensor parallelism divides: a rank that
holds some rows of the weight walks over those, and a `Vocabulary` adds up what the ranks found.)

Shapes: R rows to predict, D width, V rows of the vocabulary that are here, N size of a slice.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLICE_ENTRIES = 1 << 25
"""Logits held at once: 128 MiB in fp32."""


class Vocabulary(Protocol):
    """Which rows of the whole vocabulary a weight holds, and how to add up what the holders of all rows computed."""

    first_row: int

    def log_add(self, log_sum_R: Tensor) -> Tensor:
        """log(sum(exp)) of `log_sum_R` over the holders."""
        ...

    def add(self, values: Tensor) -> Tensor:
        """Sum of `values` over the holders."""
        ...


class WholeVocabulary:
    """All rows are here."""

    first_row = 0

    def log_add(self, log_sum_R: Tensor) -> Tensor:
        """Nobody else has anything to add."""
        return log_sum_R

    def add(self, values: Tensor) -> Tensor:
        """Likewise."""
        return values


WHOLE_VOCABULARY = WholeVocabulary()


def sum_cross_entropy(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_R: Tensor,
    vocabulary: Vocabulary = WHOLE_VOCABULARY,
) -> Tensor:
    """-sum(log softmax(hidden weight^T + bias)[target]), a scalar in fp32; zero for no rows."""
    return _SumCrossEntropy.apply(hidden_RD, weight_VD, bias_V, targets_R - vocabulary.first_row, vocabulary)


def _slices(num_rows: int, vocab_size: int) -> list[slice]:
    size = max(SLICE_ENTRIES // max(num_rows, 1), 1)
    return [slice(start, min(start + size, vocab_size)) for start in range(0, vocab_size, size)]


def _logits(hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, part: slice) -> Tensor:
    bias_N = None if bias_V is None else bias_V[part]
    return torch.nn.functional.linear(hidden_RD, weight_VD[part], bias_N).float()


class _SumCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_R: Tensor,
        vocabulary: Vocabulary,
    ) -> Tensor:
        log_sum_R = torch.full(targets_R.shape, -torch.inf, device=hidden_RD.device)
        picked_R = torch.zeros_like(log_sum_R)
        for part in _slices(len(targets_R), len(weight_VD)):
            logits_RN = _logits(hidden_RD, weight_VD, bias_V, part)
            log_sum_R = torch.logaddexp(log_sum_R, logits_RN.logsumexp(-1))
            column_R, inside_R = _columns(targets_R, part)
            picked_R += logits_RN.gather(1, column_R[:, None]).squeeze(1) * inside_R
        log_sum_R, picked_R = vocabulary.log_add(log_sum_R), vocabulary.add(picked_R)
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, targets_R, log_sum_R)
        ctx.vocabulary = vocabulary
        return (log_sum_R - picked_R).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RD, weight_VD, bias_V, targets_R, log_sum_R = ctx.saved_tensors
        hidden_gradient_RD = torch.zeros_like(hidden_RD)
        weight_gradient_VD = torch.empty_like(weight_VD)
        bias_gradient_V = None if bias_V is None else torch.empty_like(bias_V)
        for part in _slices(len(targets_R), len(weight_VD)):
            error_RN = (_logits(hidden_RD, weight_VD, bias_V, part) - log_sum_R[:, None]).exp_()
            column_R, inside_R = _columns(targets_R, part)
            error_RN.scatter_add_(1, column_R[:, None], -inside_R[:, None].to(error_RN))
            error_RN = error_RN.mul_(gradients[0]).to(hidden_RD.dtype)
            hidden_gradient_RD += error_RN @ weight_VD[part]
            weight_gradient_VD[part] = error_RN.T @ hidden_RD
            if bias_gradient_V is not None:
                bias_gradient_V[part] = error_RN.sum(0)
        return ctx.vocabulary.add(hidden_gradient_RD), weight_gradient_VD, bias_gradient_V, None, None


def _columns(targets_R: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """The targets' columns within a slice, and which targets fall in it (the others point at column 0)."""
    inside_R = (targets_R >= part.start) & (targets_R < part.stop)
    return (targets_R - part.start).where(inside_R, 0), inside_R
