"""Samples codes and tokens from logits: guidance, temperature, top-k, then top-p, in the release's order (spec, 6).

    logits -> guided (of codes alone) -> sample, with one uniform number per prompt -> codes or tokens

The uniform numbers come from a generator per prompt on the CPU, so a drawing depends on its prompt and seed, and not on
its batch or the kind of device. Many logits in bf16 are equal: as in the release, top-k keeps all that equal its last.

Shapes: B prompts, R sequences (B, or 2B with guidance), N positions, C codes per position, K codebook size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ufork.infer.config import AnswerConfig, DrawConfig

_SMALLEST_TEMPERATURE = 1e-30
"""Differences of logits divided by it are 0 or infinite, never 0 / 0."""
_ALL = 2**31 - 1
"""Stands for a top-k of 0, which keeps all choices."""


def uniform_numbers(seeds: Sequence[int], num_positions: int, codes_per_position: int) -> Tensor:
    """Returns uniform numbers BNC in [0, 1), those of each prompt drawn from its own seed."""
    shape = (num_positions, codes_per_position)
    return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def guided(logits_RK: Tensor, guidance: float, num_prompts: int) -> Tensor:
    """Returns guided logits BK; with guidance R = 2B, conditional sequences first, and without it R = B."""
    if len(logits_RK) == num_prompts:
        return logits_RK
    conditional_BK, unconditional_BK = logits_RK.chunk(2)
    return extrapolated(conditional_BK, unconditional_BK, guidance)


def extrapolated(conditional_BK: Tensor, unconditional_BK: Tensor, guidance: float | Tensor) -> Tensor:
    """Returns logits BK in fp32, since guidance multiplies the rounding of bf16; `guidance` is a number or B1."""
    conditional_BK, unconditional_BK = conditional_BK.float(), unconditional_BK.float()
    return unconditional_BK + guidance * (conditional_BK - unconditional_BK)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature, top-k and top-p of each row of logits, or of all rows where B is 1."""

    temperature_B1: Tensor
    top_k_B1: Tensor
    top_p_B1: Tensor
    is_greedy_B: Tensor
    """Rows whose temperature is 0."""
    smallest_top_k: int
    largest_top_k: int
    """Of `top_k_B1`."""
    all_greedy: bool
    any_greedy: bool

    @classmethod
    def of(cls, configs: Sequence[DrawConfig] | Sequence[AnswerConfig], device: torch.device) -> Self:
        """Returns the sampling of `configs`, one per row or one for all."""
        greedy = [config.temperature == 0 for config in configs]
        top_k = [config.top_k or _ALL for config in configs]

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        return cls(
            temperature_B1=column([max(config.temperature, _SMALLEST_TEMPERATURE) for config in configs]),
            top_k_B1=column(top_k),
            top_p_B1=column([config.top_p for config in configs]),
            is_greedy_B=torch.tensor(greedy, device=device),
            smallest_top_k=min(top_k),
            largest_top_k=max(top_k),
            all_greedy=all(greedy),
            any_greedy=any(greedy),
        )


def sample(logits_BK: Tensor, sampling: Sampling, uniform_B: Tensor) -> Tensor:
    """Returns codes B (int64) by inverting the cumulative distribution that temperature, top-k and top-p leave.

    What a row draws does not depend on the other rows. A row that is not finite draws any code.
    """
    if sampling.all_greedy:
        return logits_BK.argmax(-1)
    weights_BK, cumulative_BK, codes_BK = _sorted_weights(logits_BK, sampling)
    last_B1 = (_is_kept(weights_BK, cumulative_BK, sampling).sum(-1, keepdim=True) - 1).clamp(min=0)
    drawn_B1 = torch.searchsorted(cumulative_BK, uniform_B[:, None] * cumulative_BK.gather(1, last_B1), right=True)
    drawn_B = codes_BK.gather(1, drawn_B1.minimum(last_B1)).squeeze(1)  # rounding may reach past the last that is kept
    return torch.where(sampling.is_greedy_B, logits_BK.argmax(-1), drawn_B) if sampling.any_greedy else drawn_B


def kept_probabilities(logits_BK: Tensor, config: DrawConfig) -> Tensor:
    """Returns the probabilities BK that `sample` draws from at a temperature above 0, in fp32; 0 for codes left out."""
    sampling = Sampling.of([config], logits_BK.device)
    weights_BK, cumulative_BK, codes_BK = _sorted_weights(logits_BK, sampling)
    kept_BK = weights_BK * _is_kept(weights_BK, cumulative_BK, sampling)
    probabilities_BK = kept_BK / kept_BK.sum(-1, keepdim=True)
    return torch.zeros_like(logits_BK, dtype=torch.float32).scatter(1, codes_BK, probabilities_BK)


def _sorted_weights(logits_BK: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what temperature and top-k leave: unnormalised probabilities in descending order, their sums, the codes.

    A sum does not depend on what comes after it: so a row draws the same whatever the other rows keep.
    """
    num_rows, num_choices = logits_BK.shape
    sorted_BK, codes_BK = _largest(logits_BK.float(), min(sampling.largest_top_k, num_choices))
    weights_BK = ((sorted_BK - sorted_BK[:, :1]) / sampling.temperature_B1).exp()
    if sampling.smallest_top_k < sorted_BK.shape[1]:
        last_B1 = (sampling.top_k_B1.clamp(max=sorted_BK.shape[1]) - 1).expand(num_rows, 1)
        weights_BK = weights_BK.where(sorted_BK >= sorted_BK.gather(1, last_B1), 0.0)
    return weights_BK, weights_BK.cumsum(-1), codes_BK


def _is_kept(weights_BK: Tensor, cumulative_BK: Tensor, sampling: Sampling) -> Tensor:
    """Returns whether top-p keeps a code: the sum before it is less than that share of all."""
    return cumulative_BK - weights_BK < sampling.top_p_B1 * cumulative_BK[:, -1:]


def _largest(logits_BK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the `count` largest logits and all that equal the last of them, in descending order, and their codes.

    There may be more. On CPUs numpy sorts with vector instructions: 3 times as fast at 8 x 2,048 as torch's topk, which
    has none.
    """
    if not logits_BK.is_cpu:
        sorted_BK, codes_BK = logits_BK.sort(dim=-1, descending=True)
        return sorted_BK, codes_BK
    codes_BK = torch.from_numpy(np.argsort(-logits_BK.numpy(), axis=-1))
    if count < codes_BK.shape[1]:
        last_B1 = logits_BK.gather(1, codes_BK[:, count - 1 : count])
        codes_BK = codes_BK[:, : max(count, int((logits_BK >= last_B1).sum(-1).max()))]
    return logits_BK.gather(1, codes_BK), codes_BK
