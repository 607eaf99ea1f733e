"""Mutations of files: bytes and a seeded generator in, other bytes out.

    contents -> one to three mutations, each of the bytes, of the numbers in them, or of the file's structure
    JSON, lines of JSON -> a value, a key      safetensors -> its header      tar -> a header with its checksum

Half of the mutations keep the structure, so that they pass the first check of a reader and reach the next.
"""

import json
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

BLOCK = 512
WORDS = (
    *(b"", b"\0", b"\n", b"\r", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\x1b[2J"),
    *(b"<script>alert(1)</script>", b"../../etc/passwd", b"/dev/zero", b"NaN", b"Infinity", b"-", b"{", b"[" * 2000),
    *(b"(", b'"', b",", b"9" * 40, b"1e999", b"-1", b"0", b"null", b"true", b"\x80" * 9, b"<|im_end|>", b"&a [*a,*a]"),
)
NUMBERS = (b"0", b"-1", b"1", b"2", b"255", b"65536", b"2147483648", b"4294967296", b"9223372036854775808", b"9" * 30)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 10**6, 10**9, 2**31, 2**63, 10**30, 0.5, 1e308, -1e308, float("nan")),
    *(
        float("inf"),
        "",
        "a",
        "5",
        "\ud800",
        "\0",
        "\x1b[31m",
        "<script>alert(1)</script>",
        "](javascript:1)",
        "../../x",
    ),
    *("/etc/passwd", "x" * 70_000, [], {}, [[]], {"": {}}, [1] * 3000, {"a": 1}, [["a", "b"]], [0, 2**40], "F64", "I8"),
)


def mutated(contents: bytes, random: Random, structure: Mutation | None) -> bytes:
    """Returns `contents` after one to three mutations; `structure` is one that knows the format."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        choices = [change_structure(structure)] * len(PLAIN) if structure else []
        contents = random.choice([*PLAIN, *choices])(contents, random)
    return contents


def change_structure(structure: Mutation) -> Mutation:
    """Returns `structure`, or for contents that have lost it one of the plain mutations."""

    def change(contents: bytes, random: Random) -> bytes:
        try:
            return structure(contents, random)
        except (ValueError, KeyError, IndexError, TypeError, struct.error, RecursionError):
            return random.choice(PLAIN)(contents, random)

    return change


def _flip(contents: bytes, random: Random) -> bytes:
    data = bytearray(contents)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def _put_in(contents: bytes, random: Random) -> bytes:
    at = random.randint(0, len(contents))
    return contents[:at] + random.choice((*WORDS, random.randbytes(random.randint(1, 9)))) + contents[at:]


def _overwrite(contents: bytes, random: Random) -> bytes:
    at, word = random.randint(0, len(contents)), random.choice((*WORDS, b"\0" * 64, b"\xff" * 8))
    return contents[:at] + word + contents[at + len(word) :]


def _span(contents: bytes, random: Random) -> tuple[int, int]:
    start = random.randint(0, len(contents))
    return start, min(len(contents), start + random.choice((1, 4, 40, 512, 4096)))


def _cut_out(contents: bytes, random: Random) -> bytes:
    start, end = _span(contents, random)
    return contents[:start] + contents[end:]


def _repeat(contents: bytes, random: Random) -> bytes:
    start, end = _span(contents, random)
    return contents[:end] + contents[start:end] * random.choice((1, 1, 3, 50)) + contents[end:]


def _cut_off(contents: bytes, random: Random) -> bytes:
    return contents[: random.choice((0, random.randint(0, len(contents)), max(len(contents) - 1, 0)))]


def _append(contents: bytes, random: Random) -> bytes:
    return contents + random.choice((*WORDS, contents, b"\0" * 4096))


def _swap(contents: bytes, random: Random) -> bytes:
    (a, b), (c, d) = sorted((_span(contents, random), _span(contents, random)))
    return contents if b > c else contents[:a] + contents[c:d] + contents[b:c] + contents[a:b] + contents[d:]


def _number(contents: bytes, random: Random) -> bytes:
    """Replaces a decimal number, or a binary one of 4 or 8 bytes."""
    found = list(re.finditer(rb"\d+", contents))
    if found and random.random() < 0.7:
        one = random.choice(found)
        return contents[: one.start()] + random.choice(NUMBERS) + contents[one.end() :]
    at, size = random.randint(0, len(contents)), random.choice((4, 8))
    number = random.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63, random.getrandbits(size * 8)))
    return (
        contents[:at]
        + (number % 2 ** (8 * size)).to_bytes(size, random.choice(("little", "big")))
        + contents[at + size :]
    )


PLAIN: tuple[Mutation, ...] = (_flip, _put_in, _overwrite, _cut_out, _repeat, _cut_off, _append, _swap, _number)


def json_text(contents: bytes, random: Random) -> bytes:
    """Changes a value or a key of a JSON document."""
    return json.dumps(_changed(json.loads(contents), random)).encode()


def json_lines(contents: bytes, random: Random) -> bytes:
    """Changes a line of JSON, or leaves it out."""
    lines = contents.splitlines(keepends=True)
    at = random.randrange(len(lines))
    lines[at] = random.choice((b"", json_text(lines[at], random) + b"\n"))
    return b"".join(lines)


def _changed(value: Any, random: Random) -> Any:
    """Returns `value` with one change at a random depth."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        match random.choice(("inside", "inside", "inside", "value", "drop", "rename", "add")):
            case "inside":
                return {**value, key: _changed(value[key], random)}
            case "value":
                return {**value, key: random.choice((*VALUES, value[random.choice(list(value))]))}
            case "drop":
                return {name: inner for name, inner in value.items() if name != key}
            case "rename":
                new = random.choice(("", "x", "../x", "a\nb", "<b>", "\ud800", f"{key}s", key.swapcase()))
                return {new if name == key else name: inner for name, inner in value.items()}
            case _:
                return {**value, random.choice(("extra", "<i>", "__metadata__")): random.choice(VALUES)}
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        match random.choice(("inside", "inside", "drop", "repeat", "swap")):
            case "inside":
                return [*value[:at], _changed(value[at], random), *value[at + 1 :]]
            case "drop":
                return value[:at] + value[at + 1 :]
            case "repeat":
                return value[:at] + [value[at]] * random.choice((2, 2, 200)) + value[at:]
            case _:
                return random.sample(value, len(value))
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
        return random.choice(
            (-value, value + 1, value - 1, value * 2, value * 10**6, str(value), float(value), [value])
        )
    return random.choice(VALUES)


def safetensors(contents: bytes, random: Random) -> bytes:
    """Changes the header of a safetensors file, or its numbers to ones that are not finite."""
    (size,) = struct.unpack_from("<Q", contents)
    header, body = contents[8 : 8 + size], contents[8 + size :]
    if random.random() < 0.3 and body:
        at = random.randrange(0, len(body), 4)
        special = random.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\1\0\0\0"))
        body = body[:at] + special * random.choice((1, 64)) + body[at + 4 :]
        return contents[: 8 + size] + body[: len(contents) - 8 - size]
    changed = json_text(header, random)
    return struct.pack("<Q", len(changed)) + changed + body


def tar(contents: bytes, random: Random) -> bytes:
    """Changes a header or the contents of a member of a tar, with the right checksum, or drops or repeats a member."""
    blocks = [contents[at : at + BLOCK] for at in range(0, len(contents), BLOCK)]
    headers = [number for number, block in enumerate(blocks) if block[257:262] == b"ustar"]
    at = random.choice(headers)
    following = min([number for number in headers if number > at], default=len(blocks) - 2)
    match random.choice(("field", "field", "contents", "contents", "drop", "repeat")):
        case "field":
            blocks[at] = _tar_header(blocks[at], random)
        case "contents":
            blocks[at:following] = [_with_contents(blocks[at], b"".join(blocks[at + 1 : following]), random)]
        case "drop":
            blocks[at:following] = []
        case _:
            blocks[at:following] = blocks[at:following] * 2
    return b"".join(blocks)


def _with_contents(header: bytes, padded: bytes, random: Random) -> bytes:
    changed = change_structure(json_text)(padded[: int(header[124:135], 8)], random)
    header = _with_field(header, 124, b"%011o\0" % len(changed))
    return header + changed + b"\0" * (-len(changed) % BLOCK)


TAR_FIELDS = (
    (
        0,
        100,
        (b"", b"x", b"../../x.png", b"/abs.png", b"a/b.c.d.png", b"\xff\xfe.png", b"a\n.json", b"1.png", b"2.txt"),
    ),
    (124, 12, (b"0", b"77777777777", b"\x80" + b"\xff" * 11, b"-1", b"00000001000", b"\x80\0\0\0\0\0\0\0\0\1\0\0")),
    (156, 1, (b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"x", b"g", b"L", b"K", b"S", b"V", b"\xff")),
    (345, 155, (b"..", b"a/b", b"\xff" * 155)),
)
"""Name, size, type and prefix in a header: where each is, how long, and other values."""


def _tar_header(header: bytes, random: Random) -> bytes:
    start, length, values = random.choice(TAR_FIELDS)
    return _with_field(header, start, random.choice(values)[:length].ljust(length, b"\0"))


def _with_field(header: bytes, start: int, value: bytes) -> bytes:
    """Returns a header with another value at `start`, and the checksum that fits it."""
    header = header[:start] + value + header[start + len(value) :]
    total = sum(header[:148]) + 8 * 0x20 + sum(header[156:])
    return header[:148] + b"%06o\0 " % total + header[156:]
