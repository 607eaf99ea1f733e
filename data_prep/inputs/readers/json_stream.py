r"""JSON files of any size, an entry at a time.

    [ {...}, {...} ]      an array: decoded from a buffer that grows to the largest entry
    {...}\n{...}\n        lines                                          -> one dict an entry, in the file's order

Which of the two a file is, is seen by its first character. Bytes that are not UTF-8 become lone surrogates, which the
reader of the texts refuses entry by entry.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_prep.inputs.skipped_input import SkippedInput
from ufork.errors import InputError

MAX_ENTRY_BYTES = 16 * 2**20
"""Larger entries, of which most would be files without an end, are not held in memory."""

_READ_CHARS = 2**16
_SPACE = " \t\r\n"
# Control characters in texts are common and harmless.
_DECODER = json.JSONDecoder(strict=False)


def json_entries(path: Path) -> Iterator[dict[str, Any] | SkippedInput]:
    """The entries of the file `path`, an exception in place of each that is not to be read.

    Raises:
        InputError: the file cannot be read, or is neither an array nor lines of objects.
    """
    try:
        with open(path, "rb") as file:
            first = _first_character(file)
        if first == b"{":
            yield from _lines(path)
        elif first == b"[":
            yield from _array(path)
        else:
            raise InputError(f"{path}: starts with {first!r}; expected a JSON array, or an object a line")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _first_character(file: IO[bytes]) -> bytes:
    return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _lines(path: Path) -> Iterator[dict[str, Any] | SkippedInput]:
    with open(path, "rb") as file:
        while line := file.readline(MAX_ENTRY_BYTES):
            if len(line) == MAX_ENTRY_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_ENTRY_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield SkippedInput("entry that is too large")
            elif line.strip():
                yield _entry(line.decode("utf-8-sig", "surrogateescape"))


def _entry(text: str) -> dict[str, Any] | SkippedInput:
    try:
        return _object(_DECODER.decode(text))
    except (ValueError, RecursionError):
        return SkippedInput("line that is not JSON")


def _object(value: Any) -> dict[str, Any] | SkippedInput:
    return value if isinstance(value, dict) else SkippedInput("entry that is not an object")


def _array(path: Path) -> Iterator[dict[str, Any] | SkippedInput]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        buffer = _Buffer(file)
        buffer.next_character()
        buffer.take(1)
        while (character := buffer.next_character()) not in ("]", ""):
            value = buffer.value()
            if value is _DAMAGED:
                break
            yield _object(value)
            if (character := buffer.next_character()) == ",":
                buffer.take(1)
            elif character != "]":
                break
        if character != "]":
            yield SkippedInput("JSON array that is damaged or cut off from here on")


_DAMAGED = object()


class _Buffer:
    """A window of a text file that is moved along."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._position = 0

    def next_character(self) -> str:
        """The next one that is no space; empty at the file's end."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read(_READ_CHARS):
                return ""

    def take(self, count: int) -> None:
        self._position += count

    def value(self) -> Any:
        """The JSON value that starts here, or _DAMAGED."""
        while True:
            try:
                value, self._position = _DECODER.raw_decode(self._text, self._position)
                return value
            except (ValueError, RecursionError):
                # Decoding starts anew each time: the window doubles, so that this costs no more than twice the entry.
                rest = len(self._text) - self._position
                if rest > MAX_ENTRY_BYTES or not self._read(max(rest, _READ_CHARS)):
                    return _DAMAGED

    def _read(self, chars: int) -> bool:
        more = self._file.read(chars)
        self._text = self._text[self._position :] + more
        self._position = 0
        return bool(more)
