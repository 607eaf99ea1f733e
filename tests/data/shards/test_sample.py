"""Samples as tar members and back."""

import io
import json
import pickle
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ufork.data.shards.sample import IMAGE_MEMBERS, Sample, read_codes
from ufork.errors import SampleError
from ufork.vocabulary import Task

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
CODES = st.builds(
    lambda shape, seed: np.random.default_rng(seed).integers(0, 2**16, shape).astype(np.uint16),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    st.integers(0, 9),
)
COMMON = {
    "id": TEXT,
    "task": st.sampled_from(Task),
    "source": TEXT,
    "licence": TEXT,
    "prompt": TEXT,
    "turns": st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    "truth": st.dictionaries(TEXT, st.integers() | TEXT | st.none(), max_size=3),
}
IMAGE = {"image": st.binary(), "image_format": st.sampled_from(list(IMAGE_MEMBERS.values()))}
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3).map(tuple)
SAMPLES = (
    st.builds(Sample, **COMMON, **IMAGE)
    | st.builds(Sample, **COMMON, codes=CODES)
    | st.builds(Sample, **COMMON, **IMAGE, codes=CODES)
    | st.builds(Sample, **{**COMMON, "task": st.just(Task.UNDERSTANDING), "turns": TURNS})
)


def make_members(**changes) -> dict[str, bytes]:
    text = {"id": "a-0", "task": "generation", "source": "a", "licence": "CC0", "prompt": "a dog", **changes}
    return {"json": json.dumps(text).encode(), "png": b"image"}


@given(SAMPLES)
def test_members_read_back_to_the_same_sample(sample):
    again = Sample.from_members(sample.to_members(), "here")
    for name, value in vars(sample).items():
        assert np.array_equal(getattr(again, name), value) if name == "codes" else getattr(again, name) == value
    assert again.to_members() == sample.to_members()


def test_codes_are_plain_npy_files():
    codes = np.arange(12, dtype=np.uint16).reshape(3, 2, 2)
    members = Sample(id="a", task=Task.GENERATION, source="a", licence="", codes=codes).to_members()
    assert np.array_equal(np.load(io.BytesIO(members["codes.npy"]), allow_pickle=False), codes)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"task": "translation"}, "translation"),
        ({"id": 7}, "'id'"),
        ({"turns": [["only a question"]]}, "only a question"),
        ({"turns": "none"}, "'turns'"),
        ({"truth": []}, "'truth'"),
        ({"task": ["generation"]}, "'task'"),
        ({"id": "a\ud800"}, "half of a surrogate pair"),
        ({"turns": [["why?", "\udfff so"]]}, "half of a surrogate pair"),
        ({"truth": {"x": "\ud800"}}, "half of a surrogate pair"),
        ({"prompt": 5 * 10**4299}, "cannot be read|'prompt'"),
    ],
)
def test_wrong_text_is_named_with_its_location(change, fault):
    with pytest.raises(SampleError, match="shard 3") as raised:
        Sample.from_members(make_members(**change), "shard 3")
    assert re.search(fault, str(raised.value)) and len(str(raised.value)) < 300
    assert raised.value.sample == "shard 3" and raised.value.reason in str(raised.value)


def test_a_whole_surrogate_pair_is_a_character():
    members = {
        "json": rb'{"id": "\ud83d\ude00", "task": "understanding", "source": "", "licence": "", "turns": [["", ""]]}'
    }
    assert Sample.from_members(members, "here").id == "\U0001f600"


def test_json_nested_too_deeply_is_refused():
    members = make_members()
    members["json"] = members["json"][:-1] + b', "truth": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}"
    with pytest.raises(SampleError, match="^shard 3: its JSON is nested too deeply"):
        Sample.from_members(members, "shard 3")


@pytest.mark.parametrize(
    "members",
    [
        {"png": b"image"},
        {"json": b"{", "png": b"image"},
        {"json": b"[]", "png": b"image"},
        {"json": make_members()["json"]},
        {"json": make_members(turns=[["why?", "so"]])["json"]},
        {"json": make_members(task="understanding")["json"]},
        {**make_members(), "jpg": b"another"},
    ],
)
def test_missing_or_doubled_members_are_refused(members):
    with pytest.raises(SampleError, match="shard 3"):
        Sample.from_members(members, "shard 3")


@pytest.mark.parametrize("text", [{"task": Task.GENERATION, "turns": (("why?", "so"),)}, {"task": Task.UNDERSTANDING}])
def test_without_an_image_only_turns_are_written(text):
    with pytest.raises(AssertionError, match="neither image nor codes"):
        Sample(id="a", source="a", licence="", **text).to_members()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def flip_bit(data: bytes, start: int, bit: int) -> bytes:
    index = start + bit // 8
    return data[:index] + bytes([data[index] ^ 1 << bit % 8]) + data[index + 1 :]


GOOD_NPY = npy(np.zeros((2, 2, 1), np.uint16))


BAD_NPY = {
    "pickle": pickle.dumps(np.zeros((2, 2, 1), np.uint16)),
    "objects": npy(np.array([[[{"a": 1}]]], dtype=object)),
    "wrong type": npy(np.zeros((2, 2, 1), np.int64)),
    "two dims": npy(np.zeros((2, 2), np.uint16)),
    "cut": GOOD_NPY[:-1],
    "too long": GOOD_NPY + b"\0\0",
    "cut header": GOOD_NPY[:20],
    "empty": b"",
    "no codes": npy(np.zeros((2, 2, 0), np.uint16)),
    "column-major": npy(np.zeros((2, 2, 2), np.uint16, order="F")),
    "big-endian": npy(np.zeros((2, 2, 1), ">u2")),
    "open brackets": GOOD_NPY.replace(b"(2, 2, 1), ", b"((((((((((("),
    "an expression": GOOD_NPY.replace(b"False", b"-----"),
    "no type": GOOD_NPY.replace(b"'descr': '<u2'", b"              "),
    "type twice": GOOD_NPY.replace(b"'fortran_order': False", b"'descr': '<u2'        "),
    "shape twice": GOOD_NPY.replace(b"'fortran_order': False", b"'shape': (2, 2, 1)    "),
    "negative shape": GOOD_NPY.replace(b"(2, 2, 1), ", b"(4, -2, -1)"),
    **{f"bit {bit} of its length": flip_bit(GOOD_NPY, 8, bit) for bit in range(16)},
}


def test_headers_of_other_writers_are_read():
    other = GOOD_NPY.replace(b"'descr': '<u2', 'fortran_order': False, ", b"'fortran_order':False,'descr':'<u2',    ")
    assert other != GOOD_NPY and read_codes(other, "here").shape == (2, 2, 1)


@pytest.mark.parametrize("items", [b"{", b"{'descr': '<u2'", b"{'descr': '<u2','fortran_order':False,'shape': (2,2,1)"])
def test_a_header_of_blanks_is_refused_at_once(items):
    header = items + b" " * (65_000 - len(items)) + b"X"
    began = time.perf_counter()
    with pytest.raises(SampleError, match="cannot be read"):
        read_codes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8), "here")
    assert time.perf_counter() - began < 1  # 3 s and more where blanks are tried in every way


@pytest.mark.parametrize("data", BAD_NPY.values(), ids=list(BAD_NPY))
def test_codes_that_are_not_plain_uint16_are_refused(data):
    members = {"json": make_members()["json"], "codes.npy": data}
    with pytest.raises(SampleError, match="shard 3"):
        Sample.from_members(members, "shard 3")
