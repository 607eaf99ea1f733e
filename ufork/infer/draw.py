"""Draws image codes from prompts.

    prompts and guidance nulls -> prefill -> per position: head draws the depths in turn -> projector -> body step

Shapes: B prompts, R sequences (2B with guidance, conditional first), N positions, C codes per position, E features of a
code.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ufork.data.prompts import EncodedSample, dropped_prompt, generation_prompt
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.config import DrawConfig
from ufork.infer.sampling import guided, sample, uniform_numbers
from ufork.infer.sequences import Sequences
from ufork.model.unifork import GenerationBranch, UniFork
from ufork.vocabulary import IGNORED_LABEL, Task


@torch.inference_mode()
def draw_codes(
    model: UniFork,
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    config: DrawConfig,
    *,
    num_positions: int,
    seeds: Sequence[int],
) -> Tensor:
    """Returns codes BNC for `prompts`, each from its own seed, drawn on the model's device."""
    texts = [generation_prompt(prompt) for prompt in prompts]
    if config.guidance != 1:
        texts += [dropped_prompt()] * len(prompts)
    device = model.trunk.token_embedding.weight.device
    branch: GenerationBranch = model.branches[Task.GENERATION]  # type: ignore[assignment]
    uniform_BNC = uniform_numbers(seeds, num_positions, len(branch.head.depth_positions_CP)).to(device)
    sequences = Sequences(model, Task.GENERATION, device=device)
    encoded = [_open_image(text, tokenizer) for text in texts]
    states_RD = sequences.start(encoded, num_new_tokens=num_positions, image_is_open=True)
    no_marks = torch.empty(0, dtype=torch.long, device=device)
    drawn = []
    for position in range(num_positions):
        codes_BC, sums_BE = _draw_position(branch, states_RD, config, uniform_BNC[:, position])
        drawn.append(codes_BC)
        if position < num_positions - 1:
            entering_BD, _ = model.trunk.projector(sums_BE, no_marks)
            states_RD = sequences.step(entering_BD.repeat(len(texts) // len(prompts), 1))
    return torch.stack(drawn, dim=1)


def _draw_position(
    branch: GenerationBranch, states_RD: Tensor, config: DrawConfig, uniform_BC: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns codes BC of one position, and the sum BE of their embeddings."""
    codebook_KE = branch.code_embedding.codebook_KE
    num_prompts = len(uniform_BC)
    past: list[list[Tensor]] = [[] for _ in branch.head.blocks]
    entering, codes, sums_BE = states_RD, [], torch.zeros_like(codebook_KE[:1])
    for depth in range(len(branch.head.depth_positions_CP)):
        logits_RK = branch.head.next_logits(entering, depth, past)
        codes.append(sample(guided(logits_RK, config.guidance, num_prompts), config, uniform_BC[:, depth]))
        sums_BE = sums_BE + codebook_KE[codes[-1]]
        entering = sums_BE.repeat(len(states_RD) // num_prompts, 1)
    return torch.stack(codes, dim=1), sums_BE


def _open_image(text: str, tokenizer: TextTokenizer) -> EncodedSample:
    token_ids = [*tokenizer.encode(text), tokenizer.padding_id]
    return EncodedSample(
        id="",
        task=Task.GENERATION,
        token_ids_L=np.array(token_ids, np.int64),
        labels_L=np.full(len(token_ids), IGNORED_LABEL, np.int64),
        image_begin=len(token_ids) - 1,
        codes_IC=np.zeros((0, 1), np.int64),
    )
