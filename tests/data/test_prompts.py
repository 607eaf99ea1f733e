"""Samples laid out as token sequences."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ufork.data import prompts
from ufork.data.prompts import (
    CodecSizes,
    dropped_prompt,
    drops_prompt,
    encode_sample,
    generation_prompt,
    question_prompt,
)
from ufork.data.shards.sample import Sample
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import SampleError
from ufork.vocabulary import DROPPED_PROMPT, IGNORED_LABEL, SPECIAL_TOKENS, TURN_END, TURN_START, Task

CODES = np.arange(12, dtype=np.uint16).reshape(2, 2, 3)
WORDS = st.text(min_size=1, max_size=12).filter(str.strip)
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


@pytest.fixture(scope="module", params=["trained here", "qwen"])
def tokenizer(request):
    if request.param == "qwen":
        return TextTokenizer.load(request.getfixturevalue("qwen_folder"))
    return TextTokenizer.train(["USER: what? ASSISTANT: red dog"] * 9, vocab_size=300)


def understanding(*turns, codes=CODES, **changes):
    return Sample(
        **{"id": "u-7", "task": Task.UNDERSTANDING, "source": "s", "licence": "", "turns": turns, "codes": codes}
        | changes
    )


def generation(prompt="a red dog", codes=CODES, **changes):
    return Sample(
        **{"id": "g-7", "task": Task.GENERATION, "source": "s", "licence": "", "prompt": prompt, "codes": codes}
        | changes
    )


def encoded(sample, tokenizer, **changes):
    return encode_sample(sample, tokenizer, **{"codec": CodecSizes(codes_per_position=3, codebook_size=12)} | changes)


def targets(sequence):
    return sequence.labels_L[sequence.labels_L != IGNORED_LABEL].tolist()


def test_no_merge_crosses_from_prompt_to_answer(tokenizer):
    joined = tokenizer.encode((question_prompt("what?") + "dog", TURN_END))
    apart = tokenizer.encode(question_prompt("what?")) + tokenizer.encode(("dog", TURN_END))
    assert joined != apart, "the example must be one where tokenising both as one string would merge"
    sequence = encoded(understanding(("what?", "dog")), tokenizer)
    assert sequence.token_ids_L[-len(apart) :].tolist() == apart
    assert targets(sequence) == tokenizer.encode(("dog", TURN_END))


def test_compatibility_with_the_release_hides_a_first_target_that_merges_with_the_prompt(tokenizer):
    sequence = encoded(understanding(("what?", "dog")), tokenizer, compatibility="release")
    joined = tokenizer.encode((question_prompt("what?") + "dog", TURN_END))
    assert sequence.token_ids_L[-len(joined) :].tolist() == joined
    assert targets(sequence) == joined[len(tokenizer.encode(question_prompt("what?"))) :]


def test_compatibility_with_the_release_leaves_out_positions_that_its_loss_does_not_read(tokenizer, monkeypatch):
    monkeypatch.setattr(prompts, "RELEASE_LOSS_POSITIONS", 3)
    whole = encoded(generation(), tokenizer)
    sequence = encoded(generation(), tokenizer, compatibility="release")
    assert sequence.codes_IC.tolist() == whole.codes_IC[:3].tolist()
    assert sequence.token_ids_L.tolist() == whole.token_ids_L[:-1].tolist()
    understood = encoded(understanding(("what?", "dog")), tokenizer, compatibility="release")
    assert len(understood.codes_IC) == 4


@given(turns=TURNS, with_image=st.booleans())
def test_labels_are_exactly_the_answers_shifted_by_one_position(tokenizer, turns, with_image):
    sequence = encoded(understanding(*turns, codes=CODES if with_image else None), tokenizer)
    image = [tokenizer.padding_id] * 6 if with_image else []
    text = [
        (tokenizer.encode(question_prompt(question)), tokenizer.encode((answer, TURN_END)))
        for question, answer in turns
    ]
    assert sequence.token_ids_L.tolist() == image + list(itertools.chain(*itertools.chain(*text)))
    is_target = [False] * len(image)
    for prompt, answer in text:
        is_target += [False] * len(prompt) + [True] * len(answer)
    expected = np.where(is_target, sequence.token_ids_L, IGNORED_LABEL)
    assert sequence.labels_L.tolist() == [*expected[1:], IGNORED_LABEL]
    assert sequence.image_begin == (0 if with_image else None)
    assert len(sequence.codes_IC) == (4 if with_image else 0)


@given(caption=WORDS, drop=st.booleans())
def test_generation_is_text_then_image_and_codes_are_all_it_predicts(tokenizer, caption, drop):
    sequence = encoded(generation(caption), tokenizer, drop_prompt=drop)
    text = tokenizer.encode(dropped_prompt() if drop else generation_prompt(caption))
    assert sequence.token_ids_L.tolist() == text + [tokenizer.padding_id] * 6
    assert sequence.image_begin == len(text)
    assert sequence.codes_IC.tolist() == CODES.reshape(4, 3).tolist()
    assert targets(sequence) == []


def test_a_dropped_prompt_is_the_null_text_without_the_caption(tokenizer):
    sequence = encoded(generation("zebra"), tokenizer, drop_prompt=True)
    assert tokenizer.id_of(DROPPED_PROMPT) in sequence.token_ids_L
    assert "zebra" not in tokenizer.decode(sequence.token_ids_L)


@pytest.mark.parametrize("name", [*map(str, SPECIAL_TOKENS), "</s>"])
def test_control_tokens_that_a_text_names_are_text(tokenizer, name):
    """F8: the sequences hold the tokens of the wording, at their places, and no others."""
    controls = set(tokenizer.encode(SPECIAL_TOKENS))
    drawn = encoded(generation(f"a {name} dog"), tokenizer)
    assert [id for id in drawn.token_ids_L[:-6] if id in controls] == [tokenizer.id_of(TURN_START)]
    understood = encoded(understanding((f"a {name}?", f"b {name} c")), tokenizer)
    assert [id for id in understood.token_ids_L[6:] if id in controls] == [tokenizer.turn_end_id]
    assert understood.token_ids_L[-1] == tokenizer.turn_end_id
    assert tokenizer.decode(targets(understood)) == f"b {name} c"


@pytest.mark.parametrize(
    ("sample", "fault"),
    [
        (generation(prompt=" \n"), "prompt that is not empty"),
        (generation(codes=None), "needs an image"),
        (generation(codes=None, image=b"png", image_format="png"), "no codes"),
        (understanding(codes=None, image=b"png", image_format="png"), "no codes"),
        (understanding(("what?", " ")), "answer that is not empty"),
        (understanding(), "answer that is not empty"),
    ],
    ids=["empty caption", "no image", "no codes to draw", "no codes to see", "empty answer", "no turns"],
)
def test_unusable_samples_are_named(tokenizer, sample, fault):
    with pytest.raises(SampleError, match=f"^{sample.id}.*{fault}"):
        encoded(sample, tokenizer)


@pytest.mark.parametrize(
    ("codec", "found"),
    [
        (CodecSizes(codes_per_position=2, codebook_size=12), "found 3 per position, up to 11"),
        (CodecSizes(codes_per_position=3, codebook_size=11), "found 3 per position, up to 11"),
    ],
    ids=["another depth", "beyond the codebook"],
)
@pytest.mark.parametrize("make", [generation, lambda: understanding(("what?", "dog"))])
def test_codes_of_another_image_tokenizer_are_refused(tokenizer, make, codec, found):
    with pytest.raises(SampleError, match="its codes are not those of the image tokenizer") as raised:
        encoded(make(), tokenizer, codec=codec)
    assert raised.value.detail == found


class NeverAsked:
    padding_id = 0

    def encode(self, text):
        raise AssertionError("tokenised")


@pytest.mark.parametrize(
    "sample",
    [
        generation("a dog " * 1_000_000),
        understanding(("what?", "a dog " * 1_000_000)),
        understanding(*[("what?", "dog")] * 100_000),
    ],
    ids=["long prompt", "long answer", "many dialogue turns"],
)
def test_a_text_that_cannot_fit_is_not_tokenized(sample):
    with pytest.raises(SampleError, match=r"does not fit into data\.seq_len=4096 \(\d+ characters\)"):
        encoded(sample, NeverAsked(), seq_len=4096)


def test_a_sample_of_the_most_tokens_fits_and_one_more_does_not(tokenizer):
    num_tokens = len(encoded(generation(), tokenizer).token_ids_L)
    assert len(encoded(generation(), tokenizer, seq_len=num_tokens).token_ids_L) == num_tokens
    with pytest.raises(SampleError, match=rf"^g-7: does not fit into data.seq_len={num_tokens - 1} "):
        encoded(generation(), tokenizer, seq_len=num_tokens - 1)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.1, 500), (1.0, 5000)])
def test_the_share_of_dropped_prompts_is_kept(share, expected):
    dropped = sum(drops_prompt(f"s-{n}", epoch=0, seed=1, share=share) for n in range(5000))
    assert abs(dropped - expected) <= 4 * (5000 * share * (1 - share)) ** 0.5


def test_dropping_depends_on_sample_epoch_and_seed():
    def choices(**changes):
        values = {"epoch": 0, "seed": 1} | changes
        return [drops_prompt(f"s-{n}", **values, share=0.5) for n in range(64)]

    assert choices() == choices()
    assert len({tuple(choices(**changes)) for changes in ({}, {"epoch": 1}, {"seed": 2})}) == 3
