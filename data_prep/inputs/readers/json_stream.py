r"""Reads the entries of JSON files of any size, one at a time, however they are laid out.

    [ {...}, {...} ]                an array, on one line or many, with or without a comma at its end
    {...}\n{...}\n                  JSON lines; also pretty-printed, or one behind the other
    {"data": [ {...}, ... ]}        a wrapper                                 -> one dict per entry, in their order
    {"id": {...}, "id": {...}}      entries by id
    UTF-8, UTF-16, UTF-32, gzip

Layout follows from the contents, not from the file's suffix. Values are decoded from a buffer that grows to the largest
entry. Bytes that are not valid UTF-8 become lone surrogates, which `usable_text` refuses later, so that they cost one
entry only.

ijson 3.6 (yajl2_c) was measured as a replacement for the array reader, on 100 MB of LLaVA-like entries: 333 MB/s
against 381 MB/s here (350 against 388 if the file is indented); to read other layouts has since cost 15% of that. It
stops at the first byte that is not UTF-8, at NaN, control characters and a byte order mark, where this reader
continues, and it has no limit on the size of an entry: 100 kB of opening brackets take more than 3 GB of memory.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_prep.inputs.skipped_input import SkippedInput
from ufork.errors import InputError

MAX_ENTRY_BYTES = 16 * 2**20
"""Size of the largest entry that is read; larger ones, mostly broken files, would take too much memory."""

_READ_CHARS = 2**16
_LONGEST_LITERAL = 16
"""No JSON literal or escape sequence has as many characters."""
_MAX_WRAPPERS = 3
"""Objects inside each other that are looked into for entries."""
_GZIP = b"\x1f\x8b"
_STRING = r'"((?:[^"\\]|\\.)*+)"'
_KEY = re.compile(rf"{_STRING}\s*+:")
_WRAPPER_HEAD = re.compile(
    rf"\{{\s*+(?:{_STRING}\s*+:\s*+(?:{_STRING}|[\w.+-]++)\s*+,\s*+)*+{_STRING}\s*+:\s*+(?=[\[{{])"
)
"""The members of an object up to its first list or object."""
_SPACE = re.compile("[ \t\r\n\x1e\ufeff]*")
"""JSON's, and what stands between entries of joined files and of RFC 7464."""
# strict=False allows control characters in texts, which are common and harmless.
_DECODER = json.JSONDecoder(strict=False)

_TOO_LARGE = "entry that is too large"
_NOT_JSON = "line that is not JSON"
_PYTHON = "line in Python's notation (single quotes), not JSON; write it with json.dumps"
_NO_OBJECT = "entry that is not an object"
_DAMAGED_ARRAY = "JSON array that is damaged or cut off from here on"

JsonEntry = dict[str, Any] | SkippedInput


def json_entries(path: Path, entry_keys: Collection[str] = ()) -> Iterator[JsonEntry]:
    """Yields the entries of the file `path`, and a SkippedInput for each that cannot be read.

    Args:
        path: the file.
        entry_keys: keys of which an entry has at least one. An object without any of them is looked into for entries.

    Raises:
        InputError: the file cannot be read, or does not begin with a JSON array or object.
    """
    try:
        with _opened(path) as file:
            buffer = _Buffer(file)
            if (first := buffer.next_character()) not in ("{", "["):
                found = f"starts with {first!a}" if first else "is empty"
                raise InputError(f"{path}: {found}; expected a JSON array, or one JSON object per line")
            yield from _entries(buffer, frozenset(entry_keys))
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Opens the file as text, with the decompression and encoding that its first bytes show."""
    with open(path, "rb") as file, gzip.open(file) if file.peek(2).startswith(_GZIP) else file as stream:
        encoding = json.detect_encoding(stream.peek(4)[:4])
        errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
        yield io.TextIOWrapper(stream, encoding, errors)


def _entries(buffer: "_Buffer", entry_keys: frozenset[str]) -> Iterator[JsonEntry]:
    in_array = is_damaged = False
    # Inside a wrapper that is larger than an entry may be: the last text read, which is the key of what follows.
    large_wrapper: str | None = None
    while character := buffer.next_character():
        if (
            character in ",]"
            or (character == "[" and not in_array)
            or (character in ":}" and large_wrapper is not None)
        ):
            in_array = character == "[" or (in_array and character != "]")
            buffer.take(1)
            continue
        try:
            value = buffer.value()
        except SkippedInput as skip:
            if skip.reason == _TOO_LARGE and not in_array and large_wrapper is None:
                large_wrapper = buffer.enter_wrapper(entry_keys)
                if large_wrapper is not None:
                    continue
            is_damaged, can_go_on = True, buffer.skip_entry()
            yield skip if can_go_on or not in_array else SkippedInput(_DAMAGED_ARRAY)
            continue
        if large_wrapper is not None and not in_array:
            if isinstance(value, dict):
                yield from _unwrapped({"id": large_wrapper} | value, entry_keys)
            elif isinstance(value, str):
                large_wrapper = value
            continue
        yield from _unwrapped(value, entry_keys)
    if in_array and not is_damaged:
        yield SkippedInput(_DAMAGED_ARRAY)


def _unwrapped(value: Any, entry_keys: frozenset[str]) -> Iterator[JsonEntry]:
    """Yields the entry `value`, or those in it if it is a wrapper."""
    if not isinstance(value, dict):
        yield SkippedInput(_NO_OBJECT)
    elif not entry_keys or entry_keys & value.keys():
        yield value
    else:
        yield from list(_inside(value, entry_keys, _MAX_WRAPPERS)) or [value]


def _inside(wrapper: dict[str, Any], entry_keys: frozenset[str], depth: int) -> Iterator[JsonEntry]:
    """Yields what stands beside an entry in `wrapper`, and in lists and objects in it; nothing if it holds no entry."""

    def is_entry(value: Any) -> bool:
        return isinstance(value, dict) and not entry_keys.isdisjoint(value)

    if any(map(is_entry, wrapper.values())):
        for id, value in wrapper.items():
            yield {"id": id} | value if isinstance(value, dict) else SkippedInput(_NO_OBJECT)
        return
    for value in wrapper.values():
        if isinstance(value, list) and any(map(is_entry, value)):
            yield from (item if isinstance(item, dict) else SkippedInput(_NO_OBJECT) for item in value)
        elif isinstance(value, dict) and depth > 1:
            yield from _inside(value, entry_keys, depth - 1)


class _Buffer:
    """A sliding window over a text file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._position = 0
        self._indent = ""

    def next_character(self) -> str:
        """Skips whitespace and returns the next character without taking it; empty at the end of the file."""
        while True:
            blank = _SPACE.match(self._text, self._position)
            assert blank is not None
            if "\n" in blank.group():
                self._indent = blank.group().rpartition("\n")[2]
            self._position = blank.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read(_READ_CHARS):
                return ""

    def take(self, count: int) -> None:
        self._position += count

    def value(self) -> Any:
        """Takes the JSON value that starts here.

        Raises:
            SkippedInput: there is none, or it is too large; nothing is taken.
        """
        while True:
            try:
                value, self._position = _DECODER.raw_decode(self._text, self._position)
                return value
            except (ValueError, RecursionError) as error:
                # Each retry decodes the entry again. Doubling the window limits the total to twice the entry.
                rest = len(self._text) - self._position
                may_go_on = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_LITERAL
                )
                if may_go_on and rest > MAX_ENTRY_BYTES:
                    raise SkippedInput(_TOO_LARGE) from None
                if not may_go_on or not self._read(max(rest, _READ_CHARS)):
                    is_python = self._text.startswith("{'", self._position)
                    raise SkippedInput(_PYTHON if is_python else _NOT_JSON) from None

    def enter_wrapper(self, entry_keys: frozenset[str]) -> str | None:
        """Takes the head of an object up to its first list or object, and returns its key; None for an entry."""
        head = _WRAPPER_HEAD.match(self._text, self._position) if entry_keys else None
        if head is None or not entry_keys.isdisjoint(_KEY.findall(head.group())):
            return None
        self._position = head.end()
        return head[head.lastindex or 0]

    def skip_entry(self) -> bool:
        """Moves to the next line that an entry may begin on: one as far indented as this one's, not a closing bracket.

        Returns:
            Whether there is such a line.
        """
        line = re.compile(rf"\n{self._indent}(?=[^\s,\]}}])")
        while True:
            if found := line.search(self._text, self._position):
                self._position = found.end()
                return True
            self._position = max(self._position, len(self._text) - len(self._indent) - 1)
            if not self._read(_READ_CHARS):
                self._position = len(self._text)
                return False

    def _read(self, chars: int) -> bool:
        more = self._file.read(chars)
        self._text = self._text[self._position :] + more
        self._position = 0
        return bool(more)
