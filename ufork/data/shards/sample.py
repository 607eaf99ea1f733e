"""One sample as the shards hold it.

    tar members of one key {"json": ..., "png": ...}  ->  Sample.from_members  ->  Sample  ->  to_members  ->  the same

Members are read by the explicit table below and by nothing else: no member can name a decoder, none is unpickled.
"""

import io
import json
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
# An encoder that is made once: json.dumps makes one for every call that asks for its own separators.
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Text of one task and one image: encoded bytes, codes made in advance, or both (training reads the codes then).

    Understanding may go without an image where there are turns.
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
    """What to draw (generation)."""
    turns: tuple[tuple[str, str], ...] = ()
    """Questions and answers in order (understanding)."""
    truth: dict[str, Any] = field(default_factory=dict)
    """What evaluation needs to know of the image; the source's own layout."""

    def to_members(self) -> dict[str, bytes]:
        """Contents by extension, the JSON first. The bytes depend on the sample alone."""
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
        """Whether there is neither an image nor its codes, and none is needed."""
        needs_none = self.task is Task.UNDERSTANDING and bool(self.turns)
        return needs_none and self.image is None and self.codes is None

    @classmethod
    def from_members(cls, members: Mapping[str, bytes], where: object) -> "Sample":
        """Reads the members of one key; the image stays undecoded.

        Args:
            members: contents by extension (what follows the key's first dot).
            where: the shard and key, for the message: only then is it made into text.

        Raises:
            SampleError: names `where` and what is missing, of the wrong type, or unreadable.
        """
        text = _read_text(members, where)
        images = [name for name in IMAGE_MEMBERS if name in members]
        if images:
            text |= {"image": bytes(members[images[0]]), "image_format": IMAGE_MEMBERS[images[0]]}
        if CODES_MEMBER in members:
            text["codes"] = read_codes(members[CODES_MEMBER], where)
        sample = cls(**text)
        if len(images) > 1 or not (images or CODES_MEMBER in members or sample.is_text_only):
            raise SampleError(
                f"{where}: expected one image ({', '.join(IMAGE_MEMBERS)}), {CODES_MEMBER}, or both (none where"
                f" understanding has turns), found {sorted(members)}; make the shard again"
            )
        return sample


def _read_text(members: Mapping[str, bytes], where: object) -> dict[str, Any]:
    if JSON_MEMBER not in members:
        raise SampleError(f"{where}: no .{JSON_MEMBER} member, found {sorted(members)}; is this a shard of ufork's?")
    try:
        text = json.loads(str(members[JSON_MEMBER], "utf-8"))
    except ValueError as error:
        raise SampleError(f"{where}: its JSON cannot be read: {error}") from None
    if not isinstance(text, dict):
        raise SampleError(f"{where}: its JSON should be an object, found {type(text).__name__}")
    values: dict[str, Any] = {}
    for name in _TEXT_FIELDS:
        values[name] = text.get(name, "" if name == "prompt" else None)
        if not isinstance(values[name], str):
            raise SampleError(f"{where}: {name!r} should be text, found {values[name]!r}")
    if text.get("task") not in _TASKS:
        raise SampleError(f"{where}: 'task' should be one of {list(_TASKS)}, found {text.get('task')!r}")
    values["task"] = _TASKS[text["task"]]
    values["turns"] = _read_turns(text.get("turns", []), where)
    values["truth"] = text.get("truth", {})
    if not isinstance(values["truth"], dict):
        raise SampleError(f"{where}: 'truth' should be an object, found {values['truth']!r}")
    return values


def _read_turns(turns: Any, where: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(turns, list):
        raise SampleError(f"{where}: 'turns' should be a list of [question, answer], found {turns!r}")
    for turn in turns:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn)):
            raise SampleError(f"{where}: a turn should be [question, answer], found {turn!r}")
    return tuple((question, answer) for question, answer in turns)


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
    """Reads a .npy of codes without numpy's reader, whose header parsing costs more than all the rest.

    Args:
        data: the file.
        where: the shard and key, or the file, for the message.

    Returns:
        uint16 [rows, columns, codes per position].

    Raises:
        SampleError: it is anything else.
    """
    length = int.from_bytes(data[8:_NPY_HEADER_START], "little")
    body_start = _NPY_HEADER_START + length
    try:
        if data[:8] != _NPY_MAGIC or len(data) < body_start:
            raise ValueError("not a .npy file of version 1")
        shape = _codes_shape(bytes(data[8:body_start]))
        return np.frombuffer(data, dtype="<u2", offset=body_start).reshape(shape)
    except ValueError as error:
        raise SampleError(f"{where}: {CODES_MEMBER} cannot be read: {error}; encode the shard again") from None


@lru_cache(maxsize=64)
def _codes_shape(header: bytes) -> tuple[int, ...]:
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if dtype != np.dtype("<u2") or fortran_order or len(shape) != 3:
        raise ValueError(f"expected uint16 [rows, columns, codes], found {dtype} {list(shape)}")
    return shape
