"""Checks of texts that collections contain."""

from collections.abc import Mapping
from typing import Any

from data_prep.inputs.skipped_input import SkippedInput

_MAX_LICENCE_CHARS = 1000


def usable_text(value: Any, *, what: str, max_chars: int) -> str:
    """Returns `value` without surrounding whitespace.

    Args:
        value: what the collection contains where a text is expected; any JSON value.
        what: name of the text in the reason, such as "caption".
        max_chars: length of the longest text that is accepted.

    Raises:
        SkippedInput: `value` is no text, empty, too long, or not valid Unicode.
    """
    if value is None:
        raise SkippedInput(f"no {what}")
    if not isinstance(value, str):
        raise SkippedInput(f"{what} that is not text")
    if len(value) > max_chars:
        raise SkippedInput(f"{what} longer than input.max_text_chars")
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
    if isinstance(value, list):
        value = value[0] if value else None
    return usable_text(value, what="caption", max_chars=max_chars)


def licence_of(values: Mapping[str, Any], key: str | None) -> str:
    """Returns the licence of an entry, its value for `key`; empty if it has none.

    Raises:
        SkippedInput: the value is not a short text.
    """
    value = values.get(key) if key is not None else None
    return "" if value in (None, "") else usable_text(value, what="licence", max_chars=_MAX_LICENCE_CHARS)
