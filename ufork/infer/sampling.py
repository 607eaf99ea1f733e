"""From logits to drawn codes: guidance, temperature, top-k, then top-p, in the release's order (spec, section 6).

Shapes: B prompts, K codebook size.
"""

import torch
from torch import Tensor

from ufork.infer.config import DrawConfig


def guided(logits_RK: Tensor, guidance: float, num_prompts: int) -> Tensor:
    """BK. With guidance the rows are R = 2B, conditional then unconditional; without, R = B."""
    if len(logits_RK) == num_prompts:
        return logits_RK
    conditional_BK, unconditional_BK = logits_RK.chunk(2)
    return unconditional_BK + guidance * (conditional_BK - unconditional_BK)


def sample(logits_BK: Tensor, config: DrawConfig, generator: torch.Generator) -> Tensor:
    """Codes B, int64, drawn from what temperature, top-k and top-p leave."""
    logits_BK = logits_BK.float() / config.temperature
    num_kept = min(config.top_k or logits_BK.shape[-1], logits_BK.shape[-1])
    sorted_BK, codes_BK = logits_BK.topk(num_kept, dim=-1)
    probabilities_BK = sorted_BK.softmax(-1)
    before_BK = probabilities_BK.cumsum(-1) - probabilities_BK
    probabilities_BK = probabilities_BK.masked_fill(before_BK >= config.top_p, 0.0)
    drawn_B1 = torch.multinomial(probabilities_BK, 1, generator=generator)
    return codes_BK.gather(1, drawn_B1).squeeze(1)
