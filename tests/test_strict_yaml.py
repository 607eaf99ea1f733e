"""YAML features that no recipe needs are refused by name, before they take effect."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ufork.config import merge_overrides, read_mapping
from ufork.errors import ConfigError
from ufork.strict_yaml import MAX_BYTES, MAX_DEPTH, dump_yaml, load_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join(['*' + above] * 10)}]" for above, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [" * 1 + "x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, MAX_DEPTH + 1))

REFUSED = {
    "the key 'steps' appears twice, in lines 2 and 4": "train:\n  steps: 1\n  learning_rate: 1\n  steps: 2\n",
    "more than 100000 values": BOMB,
    "contains itself": "a: &a {b: *a}",
    "nested deeper than": "[" * 5000,
    f"nested deeper than {MAX_DEPTH} levels": CHAIN,
    "nested deeper": "{a: " * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1),
    "characters; at most": "a: " + "x" * MAX_BYTES,
    "line 1: an integer of more than 1000 characters": "steps: " + "9" * 5000,
    "line 1: an integer of more": "steps: 0x" + "f" * 5000,  # converted, but of more digits than a message can hold
    "the tag": "a: !!python/object/apply:os.system [ls]",
    "tag:yaml.org,2002:timestamp": "a: !!timestamp x",
    "not valid YAML": "a: !!int x",
    "the tag 'tag:yaml.org,2002:!!!": "a: " + "!" * 200_000,
    "unhashable": "? [a]\n: b",
    r"line 2: the character '\x00' cannot be part of a text": 'a: 1\nb: ["a\\0b"]',
    r"the character '\ud800' cannot": 'a: "\\ud800"',
    r"the character '\udfff' cannot": '"\\udfff": a',
}


@pytest.mark.parametrize(("fault", "text"), REFUSED.items(), ids=[fault[:30] for fault in REFUSED])
def test_unneeded_yaml_features_are_refused_with_the_file_named(tmp_path, fault, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(ConfigError, match="bad.yaml: not valid YAML") as refused:
        read_mapping(path)
    assert fault in str(refused.value)
    assert time.monotonic() - began < 10
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, "!!int x", "&a [*a]"])
def test_values_of_overrides_are_read_alike(text):
    with pytest.raises(ConfigError, match="override .*: the value is not valid YAML"):
        merge_overrides({}, [f"train.steps={text}"])


def test_anchors_within_the_limits_are_read():
    text = "shared: &shared {lr: 1.0e-3, steps: 5}\nphases: {a: *shared, b: {<<: *shared, steps: 7}}"
    assert load_yaml(text)["phases"] == {"a": {"lr": 1e-3, "steps": 5}, "b": {"lr": 1e-3, "steps": 7}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-.5E+3", -500.0),
        ("'1e-4'", "1e-4"),
        ("[1_000, 0x1F, -0, .5, 1., 0]", [1000, 31, 0, 0.5, 1.0, 0]),
        ("[0100, 1:30, 1:30.5]", ["0100", "1:30", "1:30.5"]),
        ("2024-01-01", "2024-01-01"),
        ("", None),
    ],
)
def test_numbers_are_those_of_yaml_1_2_and_dates_are_text(text, value):
    assert load_yaml(text) == value


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.from_regex(r"[0-9.e+-]+"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_dumped_values_are_read_unchanged(value):
    assert load_yaml(dump_yaml(value)) == value


@given(st.text(alphabet="ab:-[]{}&*!<>|'\"\n #1.e,?%@", max_size=60))
def test_any_text_is_a_value_or_one_kind_of_error(text):
    try:
        load_yaml(text)
    except yaml.YAMLError:
        pass


def test_a_file_that_is_no_regular_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a regular file"):
        read_mapping(tmp_path)
