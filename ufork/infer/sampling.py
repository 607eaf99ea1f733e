"""Samples codes from logits: guidance, temperature, top-k, then top-p, in the release's order (spec, section 6).

    logits of a depth -> guided -> sample, with one uniform number per prompt -> codes

The uniform numbers come from a generator per prompt on the CPU, so a drawing depends on its prompt and seed, and not on
its batch or the kind of device.

Shapes: B prompts, R sequences (B, or 2B with guidance), N positions, C codes per position, K codebook size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ufork.infer.config import DrawConfig


def uniform_numbers(seeds: Sequence[int], num_positions: int, codes_per_position: int) -> Tensor:
    """Returns uniform numbers BNC in [0, 1), those of each prompt drawn from its own seed."""
    shape = (num_positions, codes_per_position)
    return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def guided(logits_RK: Tensor, guidance: float, num_prompts: int) -> Tensor:
    """Returns guided logits BK; with guidance R = 2B, conditional sequences first, and without it R = B."""
    if len(logits_RK) == num_prompts:
        return logits_RK
    conditional_BK, unconditional_BK = logits_RK.float().chunk(2)  # guidance multiplies the rounding of bf16
    return unconditional_BK + guidance * (conditional_BK - unconditional_BK)


def sample(logits_BK: Tensor, config: DrawConfig, uniform_B: Tensor) -> Tensor:
    """Returns codes B (int64) by inverting the cumulative distribution that temperature, top-k and top-p leave."""
    if config.temperature == 0:
        return logits_BK.argmax(-1)
    probabilities_BK, codes_BK = _kept(logits_BK, config)
    cumulative_BK = probabilities_BK.cumsum(-1)
    drawn_B1 = torch.searchsorted(cumulative_BK, uniform_B[:, None] * cumulative_BK[:, -1:], right=True)
    last_B1 = (probabilities_BK > 0).sum(-1, keepdim=True) - 1  # rounding may reach past the last code that is kept
    return codes_BK.gather(1, drawn_B1.minimum(last_B1)).squeeze(1)


def kept_probabilities(logits_BK: Tensor, config: DrawConfig) -> Tensor:
    """Returns the probabilities BK that `sample` draws from at a temperature above 0, in fp32; 0 for codes left out."""
    probabilities_BK, codes_BK = _kept(logits_BK, config)
    kept_BK = torch.zeros_like(logits_BK, dtype=torch.float32).scatter(1, codes_BK, probabilities_BK)
    return kept_BK / kept_BK.sum(-1, keepdim=True)


def _kept(logits_BK: Tensor, config: DrawConfig) -> tuple[Tensor, Tensor]:
    """Returns probabilities in descending order, 0 beyond top-p and not normalised again, and their codes."""
    logits_BK = logits_BK.float() / config.temperature
    num_kept = min(config.top_k or logits_BK.shape[-1], logits_BK.shape[-1])
    sorted_BK, codes_BK = _largest(logits_BK, num_kept)
    probabilities_BK = sorted_BK.softmax(-1)
    before_BK = probabilities_BK.cumsum(-1) - probabilities_BK
    return probabilities_BK.masked_fill(before_BK >= config.top_p, 0.0), codes_BK


def _largest(logits_BK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the `count` largest logits in descending order, and their codes.

    On CPUs numpy sorts with vector instructions: 3 times as fast at 8 x 2,048 as torch's topk, which has none.
    """
    if not logits_BK.is_cpu:
        sorted_BK, codes_BK = logits_BK.topk(count, dim=-1)
        return sorted_BK, codes_BK
    codes_BK = torch.from_numpy(np.argsort(-logits_BK.numpy(), axis=-1)[:, :count])
    return logits_BK.gather(1, codes_BK), codes_BK
