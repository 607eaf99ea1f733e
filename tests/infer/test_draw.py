"""Cached drawing against the model run over the whole drawn image."""

import numpy as np
import pytest
import torch

from tests.tiny import DIMENSIONS
from ufork.data.packing import pack_sequence
from ufork.data.prompts import EncodedSample, dropped_prompt, generation_prompt
from ufork.infer.config import DrawConfig
from ufork.infer.draw import draw_codes
from ufork.infer.sampling import guided
from ufork.model.layers.attention import PackedAttention
from ufork.vocabulary import IGNORED_LABEL, Task

PROMPTS = ["a red dog", "x", "three green stars and a house"]
NUM_POSITIONS = 6


def draw(model, tokenizer, prompts=PROMPTS, seed=0, **changes):
    config = DrawConfig(**{"guidance": 1.0} | changes)
    seeds = range(seed, seed + len(prompts))
    return draw_codes(model, tokenizer, prompts, config, num_positions=NUM_POSITIONS, seeds=seeds)


def logits_over(model, tokenizer, text, codes_NC):
    """Logits NCK of every code of a finished image, each given all before it: no cache, one sequence alone."""
    text_ids = tokenizer.encode(text)
    token_ids = text_ids + [tokenizer.padding_id] * (len(codes_NC) + 2)
    sample = EncodedSample(
        id="",
        task=Task.GENERATION,
        token_ids_L=np.array(token_ids),
        labels_L=np.full(len(token_ids), IGNORED_LABEL),
        image_begin=len(text_ids),
        codes_IC=codes_NC.numpy(),
    )
    packed = pack_sequence([sample], seq_len=len(token_ids), padding_id=0)
    attend, branch = PackedAttention(packed, model.kernel), model.branches[Task.GENERATION]
    states = branch.states(model.trunk(packed, attend), packed.positions_T, attend)
    return branch.head.out(
        branch.head.states(states[packed.image_positions_I - 1], branch.code_embedding(packed.codes_IC))
    )


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.inference_mode()
def test_greedy_codes_are_the_likeliest_of_an_uncached_run(model, tokenizer, guidance):
    """Each code is compared given those before it, which proves all of them by induction."""
    codes_BNC = draw(model, tokenizer, guidance=guidance, top_k=1)
    assert codes_BNC.shape == (3, NUM_POSITIONS, DIMENSIONS.codes_per_position)
    for prompt, codes_NC in zip(PROMPTS, codes_BNC, strict=True):
        texts = [generation_prompt(prompt)] + [dropped_prompt()] * (guidance != 1)
        logits = torch.stack([logits_over(model, tokenizer, text, codes_NC) for text in texts])
        assert guided(logits, guidance, 1)[0].argmax(-1).equal(codes_NC), prompt


@torch.inference_mode()
def test_codes_depend_on_the_prompt_and_on_earlier_codes(model, tokenizer):
    """Otherwise the comparison above could not fail."""
    codes_BNC = draw(model, tokenizer, top_k=1)
    assert len({tuple(codes.flatten().tolist()) for codes in codes_BNC}) == 3
    assert all(len(codes.unique(dim=0)) > 1 for codes in codes_BNC)


@pytest.mark.parametrize(("guidance", "sequences_per_prompt"), [(1.0, 1), (3.0, 2)])
def test_guidance_of_1_runs_only_the_prompts(model, tokenizer, guidance, sequences_per_prompt):
    widths = []
    hook = model.trunk.stack.register_forward_pre_hook(lambda _, inputs: widths.append(len(inputs[0])))
    draw(model, tokenizer, guidance=guidance)
    hook.remove()
    assert widths[1:] == [sequences_per_prompt * len(PROMPTS)] * (NUM_POSITIONS - 1)


def test_codes_depend_on_the_seed(model, tokenizer):
    codes = draw(model, tokenizer, seed=1)
    assert codes.equal(draw(model, tokenizer, seed=1))
    assert not codes.equal(draw(model, tokenizer, seed=2))


@pytest.mark.parametrize("top_k", [1, 0])
def test_other_prompts_of_a_batch_change_nothing(model, tokenizer, top_k):
    together = draw(model, tokenizer, guidance=3.0, top_k=top_k)
    alone = [
        draw(model, tokenizer, [prompt], seed=seed, guidance=3.0, top_k=top_k) for seed, prompt in enumerate(PROMPTS)
    ]
    assert together.equal(torch.cat(alone))


def test_temperature_0_draws_the_likeliest_codes_for_any_seed(model, tokenizer):
    greedy = draw(model, tokenizer, temperature=0.0)
    assert greedy.equal(draw(model, tokenizer, temperature=0.0, seed=9))
    assert greedy.equal(draw(model, tokenizer, top_k=1))
