"""Finds and checks texts that collections contain."""

import ast
import json
from collections.abc import Collection, Mapping
from typing import Any

from data_prep.inputs.skipped_input import SkippedInput

_MAX_LICENCE_CHARS = 1000
_LISTS, _OBJECTS = ("[", "]"), ("{", "}")


def usable_text(value: Any, *, what: str, max_chars: int) -> str:
    """Returns `value` without surrounding whitespace.

    Args:
        value: what the collection contains where a text is expected; any JSON value.
        what: name of the text in the reason, such as "caption".
        max_chars: length of the longest text that is accepted.

    Raises:
        SkippedInput: `value` is no text, empty, too long, or not valid Unicode.
    """
    if value is None or value != value:  # pandas stores missing values as NaN
        raise SkippedInput(f"no {what}")
    if isinstance(value, Mapping):
        raise SkippedInput(f"{what} that is an object; input.caption_column=caption.en reads its field en")
    if isinstance(value, int | float):
        raise SkippedInput(f"{what} that is a number; classes are set by input.label_column and input.class_names")
    if not isinstance(value, str):
        raise SkippedInput(f"{what} that is not text")
    if len(value) > max_chars:
        raise SkippedInput(f"{what} longer than input.max_text_chars")
    if "\0" in value:
        raise SkippedInput(f"{what} that contains NUL")
    if not is_clean(value):
        raise SkippedInput(f"{what} that is not valid UTF-8")
    if not (text := value.strip()):
        raise SkippedInput(f"empty {what}")
    return text


def is_clean(text: str) -> bool:
    """Whether `text` is valid Unicode without NUL. Readers turn bytes that are not valid UTF-8 into lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def usable_caption(value: Any, *, max_chars: int) -> str:
    """Returns a caption: `value`, or its first item if it is a list; checked as by `usable_text`."""
    several = list_in(value)
    if several is not None:
        value = several[0] if several else None
    return usable_text(value, what="caption", max_chars=max_chars)


def list_in(value: Any) -> list[Any] | None:
    """Returns a list, also one of texts that is written in JSON or Python's notation; None for anything else."""
    if isinstance(value, list):
        return value
    items = _written(value, _LISTS)
    return items if isinstance(items, list) and items and all(isinstance(item, str) for item in items) else None


def field_of(values: Mapping[str, Any], name: str) -> Any:
    """Returns the value for `name`, or for `column.field` the field of an object; None if there is no such value.

    The object may be written as JSON. Of a list of objects, the list of their fields is returned.
    """
    column, _, field = name.partition(".")
    if name in values or not field:
        return values.get(name)
    value = values.get(column)
    value = _written(value, _OBJECTS) if isinstance(value, str) else value
    if isinstance(value, list):
        return [field_of(item, field) for item in value if isinstance(item, Mapping)]
    return field_of(value, field) if isinstance(value, Mapping) else None


def column_of(name: str, columns: Collection[str]) -> str:
    """Returns the column of a table that holds `name`: itself, or what precedes the dot in `column.field`."""
    return name if name in columns else name.partition(".")[0]


def _written(text: Any, marks: tuple[str, str]) -> Any:
    """Returns the value that a text between `marks` is the JSON or Python notation of; None if it is none."""
    if not isinstance(text, str) or not (text.startswith(marks[0]) and text.endswith(marks[1])):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def licence_of(values: Mapping[str, Any], key: str | None) -> str:
    """Returns the licence of an entry, its value for `key`; empty if it has none.

    Raises:
        SkippedInput: the value is not a short text.
    """
    value = values.get(key) if key is not None else None
    return "" if value in (None, "") else usable_text(value, what="licence", max_chars=_MAX_LICENCE_CHARS)
