"""Any bytes as members of a shard give a sequence that can be packed or a SampleError with its fields, nothing else."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.tiny import CODEC_SIZES, DIMENSIONS, tiny_tokenizer
from ufork.data.packing import pack_sequence
from ufork.data.prompts import drops_prompt, encode_sample
from ufork.data.shards.sample import Sample
from ufork.errors import SampleError
from ufork.vocabulary import Task

SEQ_LEN = 200
TOKENIZER = tiny_tokenizer()
CODES = (np.arange(12, dtype=np.uint16) % DIMENSIONS.codebook_size).reshape(2, 2, 3)
WORDS = {"source": "a", "licence": "CC0"}
MEMBERS = {
    Task.GENERATION: Sample(id="a-0", task=Task.GENERATION, prompt="a dog", codes=CODES, **WORDS).to_members(),
    Task.UNDERSTANDING: Sample(
        id="a-1", task=Task.UNDERSTANDING, turns=(("what?", "a \u00e9"), ("why?", "so")), codes=CODES, **WORDS
    ).to_members(),
}

ANY_TEXT = st.text(st.characters(codec=None), max_size=9)  # lone surrogates too
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(ANY_TEXT, values, max_size=3),
    max_leaves=6,
)


def use(members: dict[str, bytes]) -> SampleError | None:
    """Uses a sample as a training stream does; returns the error for which it is skipped, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sample = Sample.from_members(members, "x.tar, sample 7")
            drop = drops_prompt(sample.id, epoch=0, seed=0, share=0.1)
            encoded = encode_sample(sample, TOKENIZER, codec=CODEC_SIZES, seq_len=SEQ_LEN, drop_prompt=drop)
    except SampleError as error:
        assert error.sample and error.reason and len(str(error)) < 600
        return error
    packed = pack_sequence([encoded], seq_len=SEQ_LEN, padding_id=TOKENIZER.padding_id)
    assert int(packed.token_ids_T.max()) < TOKENIZER.size and packed.num_targets > 0
    assert packed.codes_IC.numel() == 0 or int(packed.codes_IC.max()) < DIMENSIONS.codebook_size
    sample.id.encode()
    return None


def test_the_unmutated_members_are_used():
    assert [use(members) for members in MEMBERS.values()] == [None, None]


@st.composite
def mutated(draw, contents: bytes) -> bytes:
    """Some bits flipped, bytes put in, cut out or repeated."""
    data = bytearray(contents)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        match draw(st.sampled_from(["flip", "put in", "cut out", "repeat"])):
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "put in":
                data[start:start] = draw(st.binary(max_size=6) | st.sampled_from([b"\\ud800", b"(", b"-", b"9" * 40]))
            case "cut out":
                del data[start:end]
            case "repeat":
                data[start:start] = data[start:end] * draw(st.integers(1, 50))
    return bytes(data)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("member", ["json", "codes.npy"])
@given(data=st.data())
def test_mutated_members_are_used_or_skipped(task, member, data):
    contents = data.draw(mutated(MEMBERS[task][member]))
    assume(contents != MEMBERS[task][member])
    use({**MEMBERS[task], member: contents})


@pytest.mark.parametrize("task", list(Task))
@given(data=st.data())
def test_any_json_value_of_any_field_is_used_or_skipped(task, data):
    text = json.loads(MEMBERS[task]["json"])
    name = data.draw(st.sampled_from([*text, "unknown"]))
    text[name] = data.draw(JSON_VALUES | st.lists(st.lists(JSON_VALUES, min_size=2, max_size=2), max_size=2))
    use({**MEMBERS[task], "json": json.dumps(text).encode()})


@given(members=st.dictionaries(st.sampled_from(["json", "codes.npy", "png", "jpg", "txt"]), st.binary(max_size=40)))
def test_any_bytes_as_members_are_used_or_skipped(members):
    assert use(members)
