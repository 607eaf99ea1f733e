from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt

from ufork.config import Config, dotted_values, merge_overrides, read_mapping
from ufork.errors import ConfigError


class Optimizer(Config):
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak."""
    warmup_steps: PositiveInt = 10


class Source(Config):
    folder: str
    weight: float = 1.0


class Job(Config):
    name: str = "job"
    optimizer: Optimizer = Optimizer()
    fallback: Optimizer | None = None
    sources: tuple[Source, ...] = ()
    stages: dict[str, Optimizer] = {}


def refusal(mapping):
    with pytest.raises(ConfigError) as caught:
        Job.from_mapping(mapping, origin="job.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "key", "nearest"),
    [
        ({"nme": "x"}, "nme", "name"),
        ({"optimizer": {"learning_rat": 1.0}}, "optimizer.learning_rat", "optimizer.learning_rate"),
        ({"fallback": {"warmup": 1}}, "fallback.warmup", "fallback.warmup_steps"),
        ({"sources": [{"folder": "a", "wight": 2}]}, "sources.0.wight", "sources.0.weight"),
        ({"stages": {"first": {"warmup_step": 2}}}, "stages.first.warmup_step", "stages.first.warmup_steps"),
    ],
)
def test_unknown_key_names_the_nearest_known_one(mapping, key, nearest):
    assert f"{key}: unknown key; the nearest known one is '{nearest}'" in refusal(mapping)


def test_message_names_file_key_and_value():
    message = refusal({"optimizer": {"learning_rate": -2.0, "warmup_steps": "many"}})
    assert message.startswith("job.yaml: 2 value(s) refused")
    assert "optimizer.learning_rate: Input should be greater than 0, found -2.0" in message
    assert "optimizer.warmup_steps" in message and "found 'many'" in message


def test_thousands_of_unknown_keys_are_one_short_message():
    message = refusal({f"key{number}": 1 for number in range(20_000)})
    assert message.startswith("job.yaml: 20000 value(s) refused") and message.endswith("\n  and 19980 more")
    assert message.count("unknown key") == 20


def test_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Job().name = "other"


def test_field_docstring_is_its_description():
    assert Optimizer.model_fields["learning_rate"].description == "Peak."


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
configs = st.builds(
    Job,
    name=TEXT,
    optimizer=st.builds(Optimizer, learning_rate=st.floats(1e-9, 1e9), warmup_steps=st.integers(1, 1 << 40)),
    sources=st.lists(
        st.builds(Source, folder=TEXT, weight=st.floats(allow_nan=False, allow_infinity=False, width=32)), max_size=3
    ).map(tuple),
    stages=st.dictionaries(TEXT, st.builds(Optimizer), max_size=3),
)


@given(configs)
def test_yaml_reads_back_to_an_equal_config(config):
    assert Job.from_mapping(yaml.safe_load(config.to_yaml()), origin="again") == config


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers()),
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=3),
    st.integers(),
)
def test_override_sets_its_path_and_leaves_the_rest(mapping, path, value):
    before = dict(mapping)
    if len(path) > 1:
        mapping.pop(path[0], None)
    merged = merge_overrides(mapping, [f"{'.'.join(path)}={value}"])
    found = merged
    for key in path:
        found = found[key]
    assert found == value
    assert {key: merged[key] for key in mapping if key != path[0]} == {k: v for k, v in before.items() if k != path[0]}


def test_later_override_wins_and_values_are_yaml():
    merged = merge_overrides({}, ["a.b=1", "a.b=[x, 2]", "a.c=null", "a.d=1e-3", "a.e=true"])
    assert merged == {"a": {"b": ["x", 2], "c": None, "d": 1e-3, "e": True}}


def test_dotted_values_are_those_of_nested_mappings():
    assert dotted_values({"a": {"b": [1, {"c": 2}], "d": {}}, "e": None}) == {"a.b": [1, {"c": 2}], "e": None}


def test_override_given_in_exponents_is_a_number():
    assert Optimizer.from_mapping(merge_overrides({}, ["learning_rate=1e-4"]), origin="").learning_rate == 1e-4


@pytest.mark.parametrize("override", ["steps", "=5", "a=[1", "a.b.c=1"])
def test_malformed_override_is_quoted(override):
    with pytest.raises(ConfigError) as caught:
        merge_overrides({"a": {"b": 5}}, [override])
    assert repr(override) in str(caught.value)


@pytest.mark.parametrize(
    "override", ["." * 50_000 + "=1", "a." * 50_000 + "b=1", "x" * 50_000, "a.b." + "x" * 9999 + "=1"]
)
def test_very_long_override_is_quoted_in_short(override):
    with pytest.raises(ConfigError, match=f"override '{override[:50]}") as caught:
        merge_overrides({"a": {"b": 5}}, [override])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["a: [1", "- 1", "", "\t"])
def test_file_that_is_no_mapping_is_named(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="broken.yaml"):
        read_mapping(path)


def test_missing_file_is_named():
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read"):
        Job.from_yaml(Path("nowhere.yaml"))


def test_file_and_overrides_make_a_config(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("name: first\noptimizer: {warmup_steps: 5}\n")
    job = Job.from_yaml(path, ["name=second", "optimizer.learning_rate=0.5"])
    assert (job.name, job.optimizer.warmup_steps, job.optimizer.learning_rate) == ("second", 5, 0.5)
