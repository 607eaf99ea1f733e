"""Linear layer and summed cross-entropy in one, without ever holding the logits of a large vocabulary.

    for each chunk of the vocabulary: logits of the chunk -> running log-sum-exp, and the target's logit if it is there

The backward pass recomputes each chunk, except on CPUs where the vocabulary fits into one: there the product costs more
than keeping its result. Liger-Kernel (arXiv 2410.10989) chunks the tokens instead; chunks of the vocabulary suit
vocabulary parallelism: a rank that holds some rows of the weight loops over those, and a `Vocabulary` combines the
results of all ranks. Liger also waits for the GPU in both passes, to count targets and to look at the gradient, and
adds to the weight's whole gradient once per chunk of tokens: up to V / D times 4 V D bytes in bf16, which for a
vocabulary of 151,936 entries are 92 GB. DeepSpeed's `runtime/chunked_cross_entropy.py` starts from existing logits:
forward and backward of 2,048 bf16 tokens over 151,936 entries took 1,521 MB with it and at most 357 MB here (peak
resident memory).

Shapes: R tokens to predict, D hidden size, V rows of the weight on this rank, N vocabulary entries in a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ufork.model.layers.linear import TORCH_PRODUCTS, Products

CHUNK_LOGITS = 1 << 25
"""Most logits held at once: 128 MiB in fp32."""
ALIGNED_COLUMNS = 64
"""Larger chunks have a multiple of so many columns: products of rows that start at no multiple of 16 bytes run on a
slower kernel of cuBLAS (`align2`)."""


class Vocabulary(Protocol):
    """The rows of the vocabulary that this rank's weight holds, and the sums over all ranks that hold some."""

    first_row: int

    def log_add(self, log_sum_R: Tensor) -> Tensor:
        """Returns log(sum(exp(log_sum_R))) over the holders."""
        ...

    def add(self, values: Tensor) -> Tensor:
        """Returns the sum of `values` over the holders."""
        ...


class WholeVocabulary:
    """The weight holds every row."""

    first_row = 0

    def log_add(self, log_sum_R: Tensor) -> Tensor:
        """Returns its argument."""
        return log_sum_R

    def add(self, values: Tensor) -> Tensor:
        """Returns its argument."""
        return values


WHOLE_VOCABULARY = WholeVocabulary()


@dataclass(frozen=True, kw_only=True)
class ChunkKernels:
    """The element-wise work on the logits of one chunk, between its matrix products."""

    add: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """(logits RN, targets R as columns of the chunk, log-sum-exps R, targets' logits R) -> both sums with the chunk."""
    error: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(logits RN, targets R as columns of the chunk, log-sum-exps R, factor) -> gradient RN, in the logits' dtype; may
    overwrite the logits."""


def add_chunk(logits_RN: Tensor, columns_R: Tensor, log_sum_R: Tensor, picked_R: Tensor) -> tuple[Tensor, Tensor]:
    """`ChunkKernels.add` in plain torch."""
    logits_RN = logits_RN.float()  # under the same name, so that the memory of the narrow ones is free
    column_R, inside_R = _columns(columns_R, logits_RN.shape[1])
    picked_R = picked_R + logits_RN.gather(1, column_R[:, None]).squeeze(1) * inside_R
    return torch.logaddexp(log_sum_R, logits_RN.logsumexp(-1)), picked_R


def chunk_error(logits_RN: Tensor, columns_R: Tensor, log_sum_R: Tensor, factor: Tensor) -> Tensor:
    """`ChunkKernels.error` in plain torch."""
    dtype, column_R, inside_R = logits_RN.dtype, *_columns(columns_R, logits_RN.shape[1])
    logits_RN = logits_RN.float().sub_(log_sum_R[:, None]).exp_()  # now probabilities
    logits_RN.scatter_add_(1, column_R[:, None], -inside_R[:, None].to(logits_RN))
    return logits_RN.mul_(factor).to(dtype)


def elementwise_chunk_error(logits_RN: Tensor, columns_R: Tensor, log_sum_R: Tensor, factor: Tensor) -> Tensor:
    """`ChunkKernels.error` for torch.compile: one pass over the chunk, from logits to gradient."""
    numbers_N = torch.arange(logits_RN.shape[1], device=logits_RN.device)
    probabilities_RN = (logits_RN.float() - log_sum_R[:, None]).exp()
    return ((probabilities_RN - (columns_R[:, None] == numbers_N).float()) * factor).to(logits_RN.dtype)


PLAIN_CHUNKS = ChunkKernels(add=add_chunk, error=chunk_error)


def sum_cross_entropy(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_R: Tensor,
    vocabulary: Vocabulary = WHOLE_VOCABULARY,
    kernels: ChunkKernels = PLAIN_CHUNKS,
    products: Products = TORCH_PRODUCTS,
) -> Tensor:
    """Returns -sum(log softmax(hidden weight^T + bias)[target]), a scalar in fp32; zero for no tokens."""
    if not len(targets_R):
        # compiled code would be compiled again for empty tensors, and oneDNN rejects them
        kernels, products = PLAIN_CHUNKS, TORCH_PRODUCTS
    columns_R = targets_R - vocabulary.first_row
    return _SumCrossEntropy.apply(hidden_RD, weight_VD, bias_V, columns_R, vocabulary, kernels, products)


def _chunks(num_tokens: int, vocab_size: int) -> list[slice]:
    size = max(CHUNK_LOGITS // max(num_tokens, 1), 1)
    if ALIGNED_COLUMNS < size < vocab_size:
        size -= size % ALIGNED_COLUMNS
    return [slice(start, min(start + size, vocab_size)) for start in range(0, vocab_size, size)]


def _logits(products: Products, hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, chunk: slice) -> Tensor:
    return products.outputs(hidden_RD, weight_VD[chunk], None if bias_V is None else bias_V[chunk])


class _SumCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_R: Tensor,
        vocabulary: Vocabulary,
        kernels: ChunkKernels,
        products: Products,
    ) -> Tensor:
        log_sum_R = torch.full(targets_R.shape, -torch.inf, device=hidden_RD.device)
        picked_R = torch.zeros_like(log_sum_R)
        chunks = _chunks(len(targets_R), len(weight_VD))
        kept_RV = None
        if hidden_RD.is_cpu and len(chunks) == 1:
            kept_RV = _logits(products, hidden_RD, weight_VD, bias_V, chunks[0])
        for chunk in chunks:
            columns_R = targets_R - chunk.start
            log_sum_R, picked_R = kernels.add(
                _logits(products, hidden_RD, weight_VD, bias_V, chunk) if kept_RV is None else kept_RV,
                columns_R,
                log_sum_R,
                picked_R,
            )
        log_sum_R, picked_R = vocabulary.log_add(log_sum_R), vocabulary.add(picked_R)
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, targets_R, log_sum_R, kept_RV)
        ctx.vocabulary, ctx.kernels, ctx.products = vocabulary, kernels, products
        return (log_sum_R - picked_R).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RD, weight_VD, bias_V, targets_R, log_sum_R, kept_RV = ctx.saved_tensors
        hidden_gradient_RD = torch.zeros_like(hidden_RD)
        weight_gradient_VD = torch.empty_like(weight_VD)
        bias_gradient_V = None if bias_V is None else torch.empty_like(bias_V)
        for chunk in _chunks(len(targets_R), len(weight_VD)):
            columns_R = targets_R - chunk.start
            error_RN = ctx.kernels.error(
                _logits(ctx.products, hidden_RD, weight_VD, bias_V, chunk) if kept_RV is None else kept_RV,
                columns_R,
                log_sum_R,
                gradients[0],
            )
            hidden_gradient_RD += ctx.products.input_gradient(error_RN, weight_VD[chunk])
            weight_gradient_VD[chunk] = ctx.products.weight_gradient(error_RN, hidden_RD)
            if bias_gradient_V is not None:
                bias_gradient_V[chunk] = error_RN.sum(0)
        return ctx.vocabulary.add(hidden_gradient_RD), weight_gradient_VD, bias_gradient_V, None, None, None, None


def _columns(columns_R: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """Returns the targets' columns in a chunk, and which targets fall in it (the others get column 0)."""
    inside_R = (columns_R >= 0) & (columns_R < num_columns)
    return columns_R.where(inside_R, 0), inside_R
