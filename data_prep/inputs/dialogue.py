r"""Converts conversations in the common formats to dialogue turns.

    {"conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}
    {"messages": [{"role": "user", "content": "..." or [{"type": "text", "text": "..."}, {"type": "image"}]}, ...]}
    {"texts": [{"user": "...", "assistant": "..."}, ...]}
        ->  Dialogue(turns=(("What is it?", "A cat."),), num_images=1, ...)

The list of messages may be JSON text, or one object of lists, as older versions of `datasets` store it. A system
prompt, as a message or beside the messages, is prepended to the first question, since the answers depend on it.

Image markers (data_prep/inputs/image_markers.py) count in questions only; an answer may talk about them. They are
removed: the image always precedes the text.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.inputs.image_markers import is_image_marker, take_markers
from data_prep.inputs.readers.json_stream import MAX_ENTRY_BYTES
from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import usable_text

MESSAGES_KEYS = ("conversations", "messages", "conversation", "texts", "dialogue", "dialog")
"""Keys of the messages of an entry; the first that is there counts."""
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
"""Keys of a system prompt beside the messages."""

_ROLE_KEYS = ("from", "role", "speaker")
_TEXT_KEYS = ("value", "content", "text")
_QUESTION, _ANSWER, _SYSTEM = "question", "answer", "system"
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "question"), _QUESTION),
    **dict.fromkeys(("gpt", "assistant", "answer", "model", "bot", "chatgpt", "bing", "bard"), _ANSWER),
    **dict.fromkeys(("system", "developer"), _SYSTEM),
}
_TOOL_ROLES = {"tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython"}
_TOO_LONG = "conversation longer than input.max_text_chars"
_IMAGE_TYPES = ("image", "image_url", "input_image")
_IMAGE_PART_KEYS = ("image", "image_url", "path", "url")
_TEXT_TYPES = (None, "text", "input_text", "output_text")


@dataclass(frozen=True)
class Dialogue:
    """A conversation and the images that it refers to."""

    turns: tuple[tuple[str, str], ...]
    """(question, answer) pairs."""
    num_images: int
    """Number of images that the questions show, as markers or content parts."""
    images: tuple[Any, ...]
    """Those of them that are given there, as they are: paths, mostly."""


@dataclass(frozen=True)
class _Message:
    role: str
    text: str
    images: tuple[Any, ...] = ()
    """Images that it shows, each as it is given there, or None if it stands elsewhere."""


def read_dialogue(messages: Any, *, max_chars: int, system: Any = None) -> Dialogue:
    """Converts messages in one of the formats above.

    Args:
        messages: the value of one of `MESSAGES_KEYS`.
        max_chars: largest number of characters of all messages together.
        system: a system prompt that stands beside the messages, if there is one.

    Raises:
        SkippedInput: the format is another one, questions and answers do not alternate, or a text is unusable.
    """
    parsed = _within(max_chars, _messages(messages, max_messages=max_chars))
    if system not in (None, "") and [message.text for message in parsed[:1] if message.role == _SYSTEM] != [system]:
        parsed.insert(0, _Message(_SYSTEM, usable_text(system, what=_SYSTEM, max_chars=max_chars)))
    num_system = next((number for number, message in enumerate(parsed) if message.role != _SYSTEM), len(parsed))
    before = [message.text for message in parsed[:num_system] if message.text]
    dialogue = [_without_markers(message) for message in parsed[num_system:]]
    roles = [message.role for message in dialogue]
    if not roles or _SYSTEM in roles:
        raise SkippedInput("conversation without questions, or with a system prompt in its middle")
    if roles != [_QUESTION, _ANSWER] * (len(roles) // 2):
        raise SkippedInput("questions and answers that do not alternate")
    texts = [usable_text(message.text, what=message.role, max_chars=max_chars) for message in dialogue]
    texts[0] = usable_text("\n\n".join([*before, texts[0]]), what=_SYSTEM, max_chars=max_chars)
    images = [image for message in dialogue for image in message.images]
    return Dialogue(tuple(zip(texts[::2], texts[1::2], strict=True)), len(images), tuple(filter(None, images)))


def system_of(entry: Mapping[str, Any]) -> Any:
    """Returns the system prompt that stands beside the messages of an entry; None if there is none."""
    return next((entry[key] for key in SYSTEM_KEYS if entry.get(key) not in (None, "")), None)


def _within(max_chars: int, messages: Iterator[_Message]) -> list[_Message]:
    taken, num_chars = [], 0
    for message in messages:
        taken.append(message)
        num_chars += len(message.text)
        if num_chars > max_chars:
            raise SkippedInput(_TOO_LONG)
    return taken


def _messages(messages: Any, *, max_messages: int) -> Iterator[_Message]:
    if isinstance(messages, str):
        messages = _decoded(messages)
    if isinstance(messages, Mapping):
        messages = _transposed(messages)
    if not isinstance(messages, list):
        raise SkippedInput("conversation that is not a list")
    if len(messages) > max_messages:
        raise SkippedInput(_TOO_LONG)
    for message in messages:
        if not isinstance(message, Mapping):
            raise SkippedInput("message that is not an object")
        yield from _read_message(message)


def _decoded(text: str) -> Any:
    if len(text) > MAX_ENTRY_BYTES:
        raise SkippedInput(_TOO_LONG)
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise SkippedInput("conversation that is a text, but not JSON") from None


def _transposed(lists: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a list of objects for an object of lists, which must be equally long."""
    lists = {key: values for key, values in lists.items() if values is not None}
    if not lists or not all(isinstance(values, list) for values in lists.values()):
        raise SkippedInput("conversation that is not a list")
    if len(set(map(len, lists.values()))) > 1:
        raise SkippedInput("conversation of lists that differ in length")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _read_message(message: Mapping[str, Any]) -> Iterator[_Message]:
    role_key = next((key for key in _ROLE_KEYS if message.get(key) is not None), None)
    text_key = next((key for key in _TEXT_KEYS if message.get(key) is not None), None)
    if role_key is not None and text_key is not None:
        yield _message(message[role_key], message[text_key])
        return
    # an object for each turn, whose keys are the roles
    names = sorted((key for key, text in message.items() if key in _ROLES and text is not None), key=_ROLES.__getitem__)
    if [_ROLES[name] for name in names] != [_ANSWER, _QUESTION]:
        raise SkippedInput("message without role and text")
    yield from (_message(name, message[name]) for name in reversed(names))


def _message(name: Any, content: Any) -> _Message:
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        is_tool = isinstance(name, str) and name.lower() in _TOOL_ROLES
        raise SkippedInput("message of a tool" if is_tool else "message of an unknown role")
    if isinstance(content, Mapping) and isinstance(content.get("type"), list):
        content = _transposed(content)
    parts = [content] if isinstance(content, str | Mapping) else content
    if not isinstance(parts, list) or not all(isinstance(part, str | Mapping) for part in parts):
        raise SkippedInput("message that is neither text nor a list of parts")
    texts: list[str] = []
    images: list[Any] = []
    for part in parts:
        _read_part({"text": part} if isinstance(part, str) else part, texts, images)
    return _Message(role, "\n".join(texts).strip(), tuple(images))


def _read_part(part: Mapping[str, Any], texts: list[str], images: list[Any]) -> None:
    """Adds a content part to the texts, or to the images: None if the image stands elsewhere."""
    kind = part.get("type")
    image = next((part[key] for key in _IMAGE_PART_KEYS if part.get(key)), None)
    if kind in _IMAGE_TYPES or (kind is None and image is not None):
        images.append(image)
    elif kind in _TEXT_TYPES and isinstance(part.get("text"), str):
        texts.append(part["text"])
    else:
        raise SkippedInput("message with other parts than text and images")


def _without_markers(message: _Message) -> _Message:
    """Returns the message with its images; the markers of a question become images, those elsewhere are text."""
    if message.role != _QUESTION:
        if message.images or is_image_marker(message.text):
            raise SkippedInput("image in an answer")
        return message
    text, paths = take_markers(message.text)
    return _Message(_QUESTION, text, message.images or tuple(paths))
