"""Others' texts: which are usable."""

from typing import Any

from data_prep.source import SkippedInput


def usable_text(value: Any, *, what: str, max_chars: int) -> str:
    """`value` without space around it.

    Args:
        value: anything that a collection has where a text should be.
        what: a word for it, for the reason.
        max_chars: the longest that is usable.

    Raises:
        SkippedInput: it is no text, empty, too long, or not valid Unicode.
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
    """Whether `text` is valid Unicode without NUL; bytes that were not valid UTF-8 are read as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
