"""Reads files of class names in the formats that collections come with.

n01440764 tench, Tinca tinca          by folder, and by line number; the first of several names is used
tench                                 by line number
{"n01440764": "tench"}, ["tench"]     JSON; names are used unchanged
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import usable_text
from ufork.errors import InputError
from ufork.files import read_bounded

_MAX_BYTES = 2**26
_FOLDER_AND_NAMES = re.compile(r"(n\d{8})\s+(.+)")


def read_class_names(path: Path) -> dict[str, str]:
    """Reads class names by folder or by number ("0" is the first).

    Raises:
        InputError: the file cannot be read, or has none of the formats above.
    """
    try:
        text = read_bounded(path, _MAX_BYTES).decode("utf-8-sig")
        names = _from_json(json.loads(text)) if path.suffix.lower() == ".json" else _from_lines(text)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: not readable as class names ({error}); expected lines such as `n01440764 tench, Tinca tinca`, "
            "one name per line, or JSON {folder: name}"
        ) from None
    if not names or not all(names.values()):
        raise InputError(f"{path}: contains no class names, or an empty one")
    return names


def first_name(names: str) -> str:
    """Returns the first of several names in words: `great_white_shark, Carcharodon ...` becomes `great white shark`."""
    return names.split(",")[0].replace("_", " ").strip()


def class_name_of(value: Any, names: Mapping[str, str] | None, *, max_chars: int) -> str:
    """Returns the name of a class that a collection gives by its number or name.

    Args:
        value: what the collection contains.
        names: names by number or other key; None lets numbers stand for themselves.
        max_chars: length of the longest name that is accepted.

    Raises:
        SkippedInput: `value` is no text or number, or a number without a name.
    """
    if isinstance(value, float) and value.is_integer():  # as pandas stores whole numbers beside missing ones
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    name = usable_text(str(value) if is_number else value, what="class", max_chars=max_chars)
    if names is None or name in names:
        return name if names is None else names[name]
    if name.removeprefix("-").isdigit():
        raise SkippedInput("class number without a name in class_names")
    return name


def _from_lines(text: str) -> dict[str, str]:
    names = {}
    for number, line in enumerate(text.strip().splitlines()):
        synset = _FOLDER_AND_NAMES.fullmatch(line.strip())
        names[str(number)] = first_name(synset[2] if synset else line)
        if synset:
            names[synset[1]] = names[str(number)]
    return names


def _from_json(classes: Any) -> dict[str, str]:
    names = dict(enumerate(classes)) if isinstance(classes, list) else classes
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise TypeError("the JSON is neither a list of texts nor a mapping to texts")
    return {str(key): name for key, name in names.items()}
