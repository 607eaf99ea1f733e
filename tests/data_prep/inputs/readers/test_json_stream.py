"""JSON files entry by entry: equal to reading them whole, in bounded memory, with any kind of damage."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.inputs.readers import json_stream
from data_prep.inputs.readers.json_stream import json_entries
from data_prep.inputs.skipped_input import SkippedInput
from ufork.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=6)


def read(path, *entry_keys):
    return [entry.reason if isinstance(entry, SkippedInput) else entry for entry in json_entries(path, entry_keys)]


@given(entries=ENTRIES, indent=st.sampled_from([None, 2]), ascii_only=st.booleans(), window=st.integers(1, 9))
def test_an_array_is_read_as_written(tmp_path_factory, entries, indent, ascii_only, window):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(entries, indent=indent, ensure_ascii=ascii_only), errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_READ_CHARS", window)
        assert read(path) == entries


def test_json_lines_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"b": "\xc3\xa4"}')
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf [{"a": 1}]')
    assert read(tmp_path / "a.jsonl") == [{"a": 1}, {"b": "ä"}]
    assert read(tmp_path / "a.json") == [{"a": 1}]


def test_bad_lines_are_counted_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"a": 1}\nnot json\n3\n{"a":' + b"[" * 100_000 + b'\n{"a": ' + b"9" * 5000 + b'}\n{"b": 2}\n{"c": 3'
    )
    bad = "line that is not JSON"
    assert read(path) == [{"a": 1}, bad, "entry that is not an object", bad, bad, {"b": 2}, bad]


A, B = {"a": 1, "x": ["é"]}, {"a": 2}
BOTH = json.dumps([A, B], ensure_ascii=False)


@pytest.mark.parametrize(
    "text",
    [
        BOTH,
        BOTH[:-1] + ",\n]",
        f"[{json.dumps(A)}][{json.dumps(B)}]",
        json.dumps(A) + json.dumps(B),
        json.dumps(A, indent=2) + "\n" + json.dumps(B, indent=2),
        f"[\n{json.dumps(A)}\n,\n{json.dumps(B)}\n]\n",
        json.dumps(A) + "\r" + json.dumps(B),
        "\x1e" + json.dumps(A) + "\n\ufeff" + json.dumps(B),
        json.dumps({"version": "1.0", "data": [A, B], "labels": [{"b": 3}]}),
        json.dumps({"train": {"data": [A]}, "test": [B]}),
    ],
    ids=[
        "array",
        "commas",
        "two arrays",
        "two objects",
        "pretty",
        "lines in an array",
        "CR",
        "joined files",
        "wrapper",
        "two wrappers",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_common_layouts_and_encodings_are_read_whatever_the_suffix(tmp_path, text, encoding):
    """F4, F13."""
    (tmp_path / "a.jsonl").write_bytes(text.encode(encoding))
    assert read(tmp_path / "a.jsonl", "a") == [A, B]
    (tmp_path / "a.json").write_bytes(gzip.compress(text.encode(encoding)))
    assert read(tmp_path / "a.json", "a") == [A, B]


def test_entries_by_id_get_it_unless_they_have_one_of_their_own(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"x": {"a": 1}, "y": {"id": 7, "a": 2}, "z": 3, "meta": {"b": 1}}))
    assert read(tmp_path / "a.json", "a") == [
        {"id": "x", "a": 1},
        {"id": 7, "a": 2},
        "entry that is not an object",
        {"id": "meta", "b": 1},
    ]
    (tmp_path / "a.json").write_text('{"b": 1}')
    assert read(tmp_path / "a.json", "a") == [{"b": 1}], "no wrapper, but an entry that lacks something"


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "wrapper", [{"version": 1, "data": [A, B] * 9}, {str(id): A for id in range(18)}], ids=["data", "by id"]
)
def test_a_wrapper_may_be_larger_than_an_entry(tmp_path, monkeypatch, wrapper, indent):
    monkeypatch.setattr(json_stream, "MAX_ENTRY_BYTES", 100)
    monkeypatch.setattr(json_stream, "_READ_CHARS", 7)
    (tmp_path / "a.json").write_text(json.dumps(wrapper, indent=indent))
    assert [entry["a"] for entry in read(tmp_path / "a.json", "a")] == [1, 2 if "data" in wrapper else 1] * 9


def test_damage_costs_one_entry_of_an_indented_file(tmp_path):
    damaged = json.dumps([A, B, A], indent=2).replace('"a": 2', '"a": oops')
    (tmp_path / "a.json").write_text(damaged)
    assert read(tmp_path / "a.json") == [A, "line that is not JSON", A]


def test_python_notation_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{A}\n{B}\n{json.dumps(A)}\n")
    reason = "line in Python's notation (single quotes), not JSON; write it with json.dumps"
    assert read(tmp_path / "a.jsonl") == [reason, reason, A]


@pytest.mark.parametrize(
    "contents", [b"\x1f\x8bx", gzip.compress(b'{"a": 1}')[:-6], '{"a": "é"}'.encode("utf-16")[:-1]]
)
def test_damaged_compression_and_encoding_are_named(tmp_path, contents):
    (tmp_path / "a.json").write_bytes(contents)
    with pytest.raises(InputError, match="a.json: cannot be read"):
        read(tmp_path / "a.json")


def test_a_line_that_is_too_long_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_ENTRY_BYTES", 20)
    monkeypatch.setattr(json_stream, "_READ_CHARS", 5)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "' + b"x" * 100 + b'"}\n{"b": 2}\n')
    assert read(path) == [{"a": 1}, "entry that is too large", {"b": 2}]


@pytest.mark.parametrize("rest", ['{"b": ', "oops]", "", '{"b"}]', "[" * 100_000, '{"b": "' + "x" * 500])
def test_a_damaged_array_is_read_up_to_the_damage(tmp_path, monkeypatch, rest):
    monkeypatch.setattr(json_stream, "MAX_ENTRY_BYTES", 200)
    (tmp_path / "a.json").write_text('[{"a": 1}, ' + rest)
    entries = read(tmp_path / "a.json")
    assert entries[0] == {"a": 1}
    assert entries[-1] == "JSON array that is damaged or cut off from here on"


@pytest.mark.parametrize("contents", [b"", b"hello", b"\x00\x00", b"<html>", b"PAR1"])
def test_files_that_are_not_json_are_refused(tmp_path, contents):
    (tmp_path / "a.json").write_bytes(contents)
    with pytest.raises(InputError, match="a.json"):
        read(tmp_path / "a.json")


def test_a_large_array_takes_bounded_memory(tmp_path):
    path = tmp_path / "large.json"
    entry = json.dumps({"id": "x", "text": "y" * 1000})
    with open(path, "w") as file:
        file.write("[" + ",".join([entry] * 20_000) + "]")
    tracemalloc.start()
    try:
        assert sum(len(entry["text"]) for entry in json_entries(path)) == 20_000_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000 < path.stat().st_size / 20
