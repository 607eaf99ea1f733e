r"""Converts conversations in the common formats to dialogue turns.

    {"conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}
    {"messages": [{"role": "user", "content": "..." or [{"type": "text", "text": "..."}, {"type": "image"}]}, ...]}
        ->  Dialogue(turns=(("What is it?", "A cat."),), markers=1, ...)

A system prompt is prepended to the first question, since the answers depend on it. Image markers are removed: the image
always precedes the text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import usable_text

_KEYS = (("conversations", "from", "value"), ("messages", "role", "content"))
_QUESTION, _ANSWER, _SYSTEM = "question", "answer", "system"
_ROLES = {"human": _QUESTION, "user": _QUESTION, "gpt": _ANSWER, "assistant": _ANSWER, "system": _SYSTEM}
_MARKER = re.compile(r"\s*<image>\s*")


@dataclass(frozen=True)
class Dialogue:
    """A conversation and the images that it refers to."""

    turns: tuple[tuple[str, str], ...]
    """(question, answer) pairs."""
    markers: int
    """Number of image markers in the messages."""
    paths: tuple[str, ...]
    """Image paths given inside messages."""


@dataclass(frozen=True)
class _Message:
    role: str
    text: str
    markers: int
    paths: tuple[str, ...]


def find_messages(entry: Mapping[str, Any]) -> Any:
    """Returns the value of `conversations` or `messages` of an entry.

    Raises:
        SkippedInput: it has neither.
    """
    for key, _, _ in _KEYS:
        if entry.get(key) is not None:
            return entry[key]
    raise SkippedInput("no conversations or messages")


def read_dialogue(messages: Any, *, max_chars: int) -> Dialogue:
    """Converts `messages`, a list in either of the formats above.

    Raises:
        SkippedInput: the format is another one, questions and answers do not alternate, or a text is unusable.
    """
    if not isinstance(messages, list):
        raise SkippedInput("conversation that is not a list")
    parsed = [_read_message(message) for message in messages]
    system = [message.text for message in parsed if message.role == _SYSTEM]
    dialogue = [message for message in parsed if message.role != _SYSTEM]
    roles = [message.role for message in dialogue]
    if not roles or len(system) > 1 or (system and parsed[0].role != _SYSTEM):
        raise SkippedInput("conversation without questions, or with a system prompt in its middle")
    if roles != [_QUESTION, _ANSWER] * (len(roles) // 2):
        raise SkippedInput("questions and answers that do not alternate")
    if sum(len(message.text) for message in parsed) > max_chars:
        raise SkippedInput("conversation longer than input.max_text_chars")
    texts = [usable_text(message.text, what=message.role, max_chars=max_chars) for message in dialogue]
    if system and system[0].strip():
        texts[0] = usable_text(f"{system[0].strip()}\n\n{texts[0]}", what=_SYSTEM, max_chars=max_chars)
    turns = tuple(zip(texts[::2], texts[1::2], strict=True))
    paths = tuple(path for message in dialogue for path in message.paths)
    return Dialogue(turns, sum(message.markers for message in dialogue), paths)


def _read_message(message: Any) -> _Message:
    if not isinstance(message, Mapping):
        raise SkippedInput("message that is not an object")
    for _, role_key, text_key in _KEYS:
        if role_key in message and text_key in message:
            role, content = message[role_key], message[text_key]
            if not isinstance(role, str) or role not in _ROLES:
                raise SkippedInput("message of an unknown role")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            return _message_from_parts(_ROLES[role], parts)
    raise SkippedInput("message without role and text")


def _message_from_parts(role: str, parts: Any) -> _Message:
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise SkippedInput("message that is neither text nor a list of parts")
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    images = [part for part in parts if part.get("type") == "image"]
    if len(texts) + len(images) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise SkippedInput("message with other parts than text and images")
    text, markers = _MARKER.subn(" ", "\n".join(map(str, texts)))
    paths = tuple(part["image"] for part in images if isinstance(part.get("image"), str))
    return _Message(role, text.strip(), len(images) or markers, paths)
