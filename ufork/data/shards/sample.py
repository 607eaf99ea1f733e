"""A sample, and its form in a shard.

    tar members of one key {"json": ..., "png": ...}  ->  Sample.from_members  ->  Sample  ->  to_members  ->  the same

Members are read according to the table below and in no other way: no member can name a decoder, none is unpickled.
"""

import io
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ufork.errors import SampleError
from ufork.vocabulary import Task

JSON_MEMBER = "json"
CODES_MEMBER = "codes.npy"
IMAGE_MEMBERS = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp"}
"""Extensions that hold an image's bytes, with the name of their format."""

_TEXT_FIELDS = ("id", "source", "licence", "prompt")
_TASKS = {task.value: task for task in Task}
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER_START = 10
_SIZE = rb"[1-9]\d{0,8}"
_SHAPE = rb"\(\s*+(?P<rows>%b)\s*+,\s*+(?P<columns>%b)\s*+,\s*+(?P<codes>%b)\s*+,?\s*+\)" % (_SIZE, _SIZE, _SIZE)
_ITEM = rb"\s*+(?:'descr'\s*+:\s*+'<u2'|'fortran_order'\s*+:\s*+False|'shape'\s*+:\s*+%b)\s*+,?" % _SHAPE
_CODES_HEADER = re.compile(rb"\s*+\{(?:%b){3}\s*+\}\s*+" % _ITEM)
"""A dict of three items in any order. `*+` does not backtrack: a header may hold 65,000 blanks."""
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = _SHORT.maxlist = _SHORT.maxdict = 2
# An encoder that is made once: json.dumps makes one for every call that asks for its own separators.
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Text of one task and one image: the image's file, its codes, or both (training reads the codes then).

    An understanding sample with dialogue turns needs no image.
    """

    id: str
    """Unique over all sources, as "scenes-train-understanding-000000123"."""
    task: Task
    source: str
    licence: str
    image: bytes | None = None
    """The undecoded file."""
    image_format: str | None = None
    """One of the values of IMAGE_MEMBERS."""
    codes: np.ndarray | None = None
    """uint16 [rows, columns, codes per position]."""
    prompt: str = ""
    """Text to draw (generation)."""
    turns: tuple[tuple[str, str], ...] = ()
    """Dialogue turns in order, each a question and its answer (understanding)."""
    truth: dict[str, Any] = field(default_factory=dict)
    """Ground truth of the image, for evaluation; its layout depends on the source."""

    def to_members(self) -> dict[str, bytes]:
        """Returns contents by extension, the JSON first. The bytes depend on the sample alone."""
        text = {name: getattr(self, name) for name in ("id", "task", "source", "licence", "prompt", "turns", "truth")}
        members = {JSON_MEMBER: _JSON.encode(text).encode()}
        if self.image is not None:
            assert self.image_format is not None and self.image_format in IMAGE_MEMBERS.values(), self.id
            members[self.image_format] = self.image
        if self.codes is not None:
            assert self.codes.dtype == np.uint16 and self.codes.ndim == 3, self.id
            members[CODES_MEMBER] = _npy_bytes(self.codes)
        assert len(members) > 1 or self.is_text_only, f"{self.id}: neither image nor codes, nor turns without them"
        return members

    @property
    def is_text_only(self) -> bool:
        """Whether it has neither image nor codes, and needs none."""
        needs_none = self.task is Task.UNDERSTANDING and bool(self.turns)
        return needs_none and self.image is None and self.codes is None

    @classmethod
    def from_members(cls, members: Mapping[str, bytes], where: object) -> "Sample":
        """Reads the members of one key; the image stays undecoded.

        Args:
            members: contents by extension (the text after the key's first dot).
            where: shard and key, for the message; converted to text only then.

        Raises:
            SampleError: the members are not a sample, the only error for any bytes; names `where` and what is wrong.
        """
        text = _read_text(members, where)
        images = [name for name in IMAGE_MEMBERS if name in members]
        if images:
            text |= {"image": bytes(members[images[0]]), "image_format": IMAGE_MEMBERS[images[0]]}
        if CODES_MEMBER in members:
            text["codes"] = read_codes(members[CODES_MEMBER], where)
        sample = cls(**text)
        if len(images) > 1 or not (images or CODES_MEMBER in members or sample.is_text_only):
            raise _fault(
                where,
                f"needs one image ({', '.join(IMAGE_MEMBERS)}), {CODES_MEMBER}, or both (none where understanding has"
                " turns); make the shard again",
                found=sorted(members),
            )
        return sample


def _read_text(members: Mapping[str, bytes], where: object) -> dict[str, Any]:
    text = _read_json(members, where)
    values: dict[str, Any] = {}
    for name in _TEXT_FIELDS:
        values[name] = text.get(name, "" if name == "prompt" else None)
        if not isinstance(values[name], str):
            raise _fault(where, f"{name!r} should be text", found=values[name])
    task = text.get("task")
    if not isinstance(task, str) or task not in _TASKS:
        raise _fault(where, f"'task' should be one of {list(_TASKS)}", found=task)
    values["task"] = _TASKS[task]
    values["turns"] = _read_turns(text.get("turns", []), where)
    values["truth"] = text.get("truth", {})
    if not isinstance(values["truth"], dict):
        raise _fault(where, "'truth' should be an object", found=values["truth"])
    return values


def _read_json(members: Mapping[str, bytes], where: object) -> dict[str, Any]:
    if JSON_MEMBER not in members:
        raise _fault(where, f"no .{JSON_MEMBER} member; is this a shard of ufork's?", found=sorted(members))
    contents = bytes(members[JSON_MEMBER])
    try:
        text = json.loads(contents.decode())
        if _SURROGATE_ESCAPE.search(contents):  # valid only in pairs; Python reads a single one, but cannot encode it
            _JSON.encode(text).encode()
    except UnicodeEncodeError:
        raise _fault(where, "its JSON holds half of a surrogate pair, which is no character") from None
    except ValueError as error:
        raise SampleError("its JSON cannot be read", detail=str(error), sample=str(where)) from None
    except RecursionError:
        raise _fault(where, "its JSON is nested too deeply") from None
    if not isinstance(text, dict):
        raise _fault(where, "its JSON should be an object", found=text)
    return text


def _read_turns(turns: Any, where: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(turns, list):
        raise _fault(where, "'turns' should be a list of [question, answer]", found=turns)
    for turn in turns:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
            raise _fault(where, "each of 'turns' should be [question, answer]", found=turn)
    return tuple((question, answer) for question, answer in turns)


def _fault(where: object, reason: str, **found: Any) -> SampleError:
    detail = f"found {_SHORT.repr(found['found'])}" if found else ""
    return SampleError(reason, detail=detail, sample=str(where))


def _npy_bytes(codes: np.ndarray) -> bytes:
    return _npy_header(codes.shape) + codes.astype("<u2", copy=False).tobytes()


@lru_cache(maxsize=64)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<u2", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def holds_codes(data: bytes) -> bool:
    """Whether `data` is a .npy file, which in place of an image can only be codes."""
    return data.startswith(_NPY_MAGIC[:6])


def read_codes(data: bytes, where: object) -> np.ndarray:
    """Reads a .npy of codes without numpy's reader, which evaluates the header as Python code and is slow.

    Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

    Args:
        data: the file.
        where: the shard and key, or the file, for the message.

    Returns:
        uint16 [rows, columns, codes per position], none of them 0.

    Raises:
        SampleError: it is anything else.
    """
    body_start = _NPY_HEADER_START + int.from_bytes(data[8:_NPY_HEADER_START], "little")
    header = bytes(data[_NPY_HEADER_START:body_start])
    shape = _codes_shape(header) if data[:8] == _NPY_MAGIC else None
    if shape is None or len(data) - body_start != 2 * math.prod(shape):
        reason = (
            f"{CODES_MEMBER} cannot be read: expected .npy of uint16 [rows, columns, codes]; encode the shard again"
        )
        raise SampleError(reason, detail=f"{len(data)} bytes, header {_SHORT.repr(header)}", sample=str(where))
    return np.frombuffer(data, dtype="<u2", offset=body_start).reshape(shape)


@lru_cache(maxsize=64)
def _codes_shape(header: bytes) -> tuple[int, int, int] | None:
    """Shape in a .npy header of uint16 of three dims in C order; None for any other header."""
    found = _CODES_HEADER.fullmatch(header)
    if found is None or found["rows"] is None or b"descr" not in header or b"fortran_order" not in header:
        return None
    return int(found["rows"]), int(found["columns"]), int(found["codes"])
