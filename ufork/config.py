"""Strict typed configuration.

    YAML file -> mapping -> dotted overrides merged in -> `Config` subclass, every key known, every value in range

Each package of ufork declares its own `Config` beside the code that it configures, with units in the field names and a
docstring per field; a recipe only composes them. pydantic checks the values. Added here: numbers are finite and are
numbers (not true, not "5"), errors name the nearest known key for an unknown one, and dotted overrides.
"""

import difflib
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    model_validator,
)

from ufork.errors import ConfigError
from ufork.redaction import redacted
from ufork.strict_yaml import MAX_BYTES, MAX_DEPTH, dump_yaml, load_yaml

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


MAX_SHOWN_FAULTS = 20
"""Faults that one error names; looking for the nearest known key takes milliseconds each."""
MAX_FLOAT = 3.4028234663852886e38
"""Largest number of IEEE 754 binary32; torch refuses larger ones as scalars of fp32 operations."""

IN_FULL = "credentials in full"
"""Context of `model_dump` for files that a program reads back in order to open the data."""

NumProcesses = Annotated[int, Field(ge=1, le=1024)]
"""Number of processes to start on one machine."""


def _in_json(location: str, info: SerializationInfo) -> str:
    return location if info.context == IN_FULL else redacted(location)


Location = Annotated[str, PlainSerializer(_in_json, when_used="json")]
"""Path or URL of data, whose credentials JSON hides."""


class Config(BaseModel):
    """Base of every configuration: immutable, unknown keys refused, field docstrings kept as descriptions.

    Numbers must be finite, integers fit into 64 bits, floats into the 32 bits that models compute in; booleans and text
    are no numbers, and floats are no integers.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        validate_default=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_no_number(cls, values: Any) -> Any:
        """Replaces what pydantic would convert to a number by what it refuses."""
        if not isinstance(values, Mapping):
            return values
        checked = dict(values)
        for name in values.keys() & cls.model_fields.keys():
            types = _types_in(cls.model_fields[name].annotation) - {NoneType, ...}
            if types and types <= {int, float}:
                checked[name] = _only_numbers(values[name], integers=types == {int})
        return checked

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any], *, origin: str) -> Self:
        """Checks `mapping` against this class.

        Args:
            mapping: nested keys and values, as YAML gives them.
            origin: where the values come from, for the message.

        Raises:
            ConfigError: names each key at fault, the value found, what is allowed, and the nearest known key.
        """
        try:
            return cls.model_validate(mapping)
        except ValidationError as error:
            # a default that would follow from a refused value is no fault of its own
            faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
            lines = [f"  {_describe(fault, cls)}" for fault in faults[:MAX_SHOWN_FAULTS]]
            lines += [f"  and {len(faults) - MAX_SHOWN_FAULTS} more"] if len(faults) > MAX_SHOWN_FAULTS else []
            raise ConfigError("\n".join([f"{origin}: {len(faults)} value(s) refused", *lines])) from None

    @classmethod
    def from_yaml(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Reads the file at `path`, merges `overrides` and checks the result.

        Raises:
            ConfigError: as `read_mapping`, `merge_overrides` and `from_mapping` do.
        """
        return cls.from_mapping(merge_overrides(read_mapping(path), overrides), origin=str(path))

    def to_yaml(self) -> str:
        """Returns the resolved values as YAML, in the order of declaration; `from_yaml` reads an equal config back.

        Credentials in locations are in it: unlike other records, it is for files that are read to open the data.
        """
        return dump_yaml(self.model_dump(mode="json", context=IN_FULL))


def _types_in(annotation: Any) -> set[Any]:
    """Returns the types that the values of a field may have, those inside of containers for the containers."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {type(value) for value in inner}
    if origin is Annotated:
        inner = inner[:1]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        inner = inner[1:]
    if origin is None:
        return {annotation}
    return {kind for inside in inner for kind in _types_in(inside)}


@dataclass(frozen=True)
class _Refused:
    """Stands for a value that is none of its field's."""

    value: Any
    reason: str

    def __repr__(self) -> str:
        return repr(self.value)


def _only_numbers(value: Any, *, integers: bool) -> Any:
    """Returns `value` with everything in it that is no number, no integer if `integers`, replaced by a `_Refused`."""
    if isinstance(value, Mapping):
        return {key: _only_numbers(inner, integers=integers) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_only_numbers(inner, integers=integers) for inner in value)
    if isinstance(value, bool | str | bytes) or (integers and isinstance(value, float)):
        return _Refused(value, f"Input should be {'an integer' if integers else 'a number'}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return _Refused(value, "Input should fit into 64 bits")
    if isinstance(value, float) and math.isfinite(value) and abs(value) > MAX_FLOAT:
        return _Refused(value, f"Input should be at most {MAX_FLOAT:.3g} in size")
    return value


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping.

    Raises:
        ConfigError: the file is missing, too large, not YAML, has a key twice, or is not a mapping.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: not a regular file; give the path of a recipe")
        with open(path, encoding="utf-8") as file:
            mapping = load_yaml(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {_shortened(redacted(str(error)), 500)}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level, found {type(mapping).__name__}")
    return mapping


def merge_overrides(mapping: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns a copy of `mapping` with overrides such as `train.steps=200` merged in; values are read as YAML.

    Raises:
        ConfigError: an override is not `key=value`, its value is not YAML, or its path is deeper than YAML may be or
            runs through a plain value.
    """
    merged: dict[str, Any] = mapping
    for override in overrides:
        origin = f"override {_shortened(override)!r}"
        key, equals, text = override.partition("=")
        path = key.split(".")
        if not equals or not key:
            raise ConfigError(f"{origin}: expected KEY=VALUE, as in train.steps=200")
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"{origin}: the key has more than {MAX_DEPTH} parts")
        try:
            value = load_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{origin}: the value is not valid YAML: {_shortened(str(error), 500)}") from None
        merged = _with_value(merged, path, value, origin)
    return merged


def _with_value(mapping: Any, path: list[str], value: Any, origin: str) -> dict[str, Any]:
    head, *rest = path
    if not isinstance(mapping, dict | None):
        below = _shortened(repr(mapping))
        raise ConfigError(f"{origin}: {_shortened(head)!r} lies below a plain value ({below}), not a section")
    mapping = mapping or {}
    return {**mapping, head: _with_value(mapping.get(head), rest, value, origin) if rest else value}


def dotted_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested mappings by their dotted keys, such as model.hidden_size."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= dotted_values(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


RENAMED_KEYS = {
    "stages": "phases",
    "rows_per_step": "global_batch_size",
    "row_tokens": "seq_len",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "attention_width": "attention_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "vocabulary_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "tie_text_head": "tie_word_embeddings",
    "clip_norm": "max_grad_norm",
    "warmup_share": "warmup_ratio",
    "final_learning_rate_share": "min_lr_ratio",
    "steps_ahead": "prefetch_steps",
    "wire_precision": "p2p_dtype",
    "questions_per_skill": "scenes.questions_per_skill",
    "drawings_per_skill": "scenes.drawings_per_skill",
    "detector": "scenes.detector",
    "emoji_questions": "emoji.questions",
    "emoji_drawings": "emoji.drawings",
    "examples_per_skill": "examples_per_group",
}
"""Keys of recipes before 0.1.0, with today's names: the message of an unknown key names them."""


def _describe(fault: "ErrorDetails", cls: type[Config]) -> str:
    key = _shortened(".".join(str(key) if str(key).isprintable() else repr(key) for key in fault["loc"]))
    if fault["type"] != "extra_forbidden":
        value = fault["input"]
        reason = value.reason if isinstance(value, _Refused) else fault["msg"]
        return f"{key}: {reason}, found {_shortened(redacted(repr(value)))}"
    known = _known_keys(cls, fault["loc"])
    section, dot, name = key.rpartition(".")
    renamed = f"{section}{dot}{RENAMED_KEYS.get(name)}"
    if renamed in known:
        return f"{key}: this key is now called {renamed!r}"
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"{key}: unknown key; the nearest known one is {nearest[0]!r}" if nearest else f"{key}: unknown key"


def _shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _known_keys(cls: type[BaseModel], loc: tuple[int | str, ...], prefix: str = "") -> list[str]:
    """Returns the keys below `prefix`; of a container's entries, only those of the entry on the path `loc`."""
    keys = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        below = loc[1:] if loc[:1] == (name,) else ()
        inside = f"{prefix}{name}."
        if get_origin(field.annotation) in (dict, tuple, list):
            if not below:
                continue
            inside, below = f"{inside}{below[0]}.", below[1:]
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                keys += _known_keys(inner, below, inside)
    return keys
