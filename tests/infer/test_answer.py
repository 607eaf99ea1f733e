"""Cached greedy answers against the model run over the whole answer, and where they end."""

import numpy as np
import pytest
import torch

from tests.tiny import DIMENSIONS
from ufork.data.packing import pack_sequence
from ufork.data.prompts import EncodedSample, question_prompt
from ufork.infer.answer import answer_questions
from ufork.infer.config import AnswerConfig
from ufork.model.layers.attention import PackedAttention
from ufork.vocabulary import IGNORED_LABEL, Task

QUESTIONS = ["what is this?", "how many red apples are there?"]
CODES_BYXC = np.random.default_rng(0).integers(
    0, DIMENSIONS.codebook_size, (2, 2, 2, DIMENSIONS.codes_per_position), dtype=np.uint16
)


class ShowsIds:
    """A tokenizer that decodes to the ids themselves, with an end of turn of our choice."""

    def __init__(self, tokenizer, turn_end_id):
        self.encode, self.padding_id, self.turn_end_id = tokenizer.encode, tokenizer.padding_id, turn_end_id

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))


def answers(model, tokenizer, turn_end_id=-1, max_tokens=8, count=2, seed=0, **changes):
    """Token ids per question."""
    config = AnswerConfig(max_tokens=max_tokens, **changes)
    shown = answer_questions(
        model,
        ShowsIds(tokenizer, turn_end_id),
        CODES_BYXC[:count],
        QUESTIONS[:count],
        config,
        seeds=range(seed, seed + count),
    )
    return [[int(token) for token in answer.split()] for answer in shown]


@torch.inference_mode()
def uncached(model, tokenizer, codes, question, num_tokens):
    codes_IC = codes.reshape(-1, codes.shape[-1]).astype(np.int64)
    token_ids = [tokenizer.padding_id] * (len(codes_IC) + 2) + tokenizer.encode(question_prompt(question))
    first = len(token_ids)
    for _ in range(num_tokens):
        sample = EncodedSample(
            id="",
            task=Task.UNDERSTANDING,
            token_ids_L=np.array(token_ids),
            labels_L=np.full(len(token_ids), IGNORED_LABEL),
            image_begin=0,
            codes_IC=codes_IC,
        )
        packed = pack_sequence([sample], seq_len=len(token_ids), padding_id=0)
        attend, branch = PackedAttention(packed, model.kernel), model.branches[Task.UNDERSTANDING]
        states = branch.states(model.trunk(packed, attend), packed.positions_T, attend)
        token_ids.append(int(branch.head.logits(states[-1]).argmax()))
    return token_ids[first:]


def test_answers_are_those_of_an_uncached_greedy_run(model, tokenizer):
    found = answers(model, tokenizer)
    assert found[0] != found[1] and len(set(found[0])) > 1, "else the comparison could not fail"
    for codes, question, answer in zip(CODES_BYXC, QUESTIONS, found, strict=True):
        assert answer == uncached(model, tokenizer, codes, question, 8)


def test_an_answer_ends_at_the_end_of_turn_while_another_continues(model, tokenizer):
    first, second = answers(model, tokenizer)
    index = next(i for i, token in enumerate(first) if token not in second)
    end = first[index]
    length = first.index(end)
    assert answers(model, tokenizer, turn_end_id=end) == [first[:length] + [end] * (8 - length), second]


def test_sampled_answers_depend_on_their_seed_and_not_on_their_batch(model, tokenizer):
    sampled = answers(model, tokenizer, seed=3, temperature=1.0)
    assert sampled == answers(model, tokenizer, seed=3, temperature=1.0)
    assert sampled[:1] == answers(model, tokenizer, seed=3, temperature=1.0, count=1)
    assert sampled != answers(model, tokenizer, seed=4, temperature=1.0)
    assert answers(model, tokenizer, temperature=1.0, top_k=1) == answers(model, tokenizer)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_nothing_is_computed_past_the_last_end_or_the_limit(model, tokenizer, num_tokens):
    (answer,) = answers(model, tokenizer, count=1)
    runs = []
    hook = model.trunk.stack.register_forward_pre_hook(lambda *_: runs.append(1))
    (limited,) = answers(model, tokenizer, max_tokens=num_tokens, count=1)
    assert (limited, len(runs)) == (answer[:num_tokens], num_tokens)
    runs.clear()
    end = answer[num_tokens]
    (ended,) = answers(model, tokenizer, turn_end_id=end, count=1)
    hook.remove()
    assert ended == answer[: answer.index(end) + 1]
    assert len(runs) == len(ended)
