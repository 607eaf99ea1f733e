"""Text as Markdown that shows it as it is: no character of it begins formatting, a link, an image or HTML.

    text from files of others -> as_text, as_code, as_fenced -> Markup, which is not escaped again

https://spec.commonmark.org/0.31.2/#backslash-escapes: any ASCII punctuation may be escaped. Tables are GitHub's.
"""

import re

from markupsafe import Markup

_MARKS = re.compile(r"[\\`*\[\]|]|<(?=[A-Za-z/!?])|(?<!\w)_|_(?!\w)|^[#=~]|^[-+](?= )")
"""Characters that begin something in a line, or at its start; `_` inside a word and `<` before a blank do not."""
_BACKTICKS = re.compile("`+")


def as_text(value: str) -> Markup:
    """Returns `value` on one line."""
    return Markup(_MARKS.sub(r"\\\g<0>", " ".join(value.split())))


def as_code(value: str) -> Markup:
    """Returns `value` as a code span."""
    marks = _longer_than(value, 0)
    padding = " " if "`" in value else ""
    return Markup(f"{marks}{padding}{' '.join(value.split())}{padding}{marks}")


def as_fenced(value: str, language: str) -> Markup:
    """Returns `value` as a block of code."""
    marks = _longer_than(value, 2)
    return Markup(f"{marks}{language}\n{value.strip()}\n{marks}")


def _longer_than(value: str, least: int) -> str:
    """Returns more backticks than `least`, and than are side by side in `value`."""
    return "`" * (1 + max([least, *map(len, _BACKTICKS.findall(value))]))
