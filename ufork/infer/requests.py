"""Requests to an engine and their replies: parts as they come, the whole at the end, or the request's own error.

    Engine.draw, Engine.answer -> Reply            any thread: iterate over it, `result`, `cancel`
    the engine's thread: Job -> Reply.add, Reply.end

Shapes: N positions of an image, or tokens of an answer, C codes per position.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from ufork.errors import CancelledError
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.slots import Slot
from ufork.vision.codec import ImageCodec

log = logging.getLogger(__name__)

_UNDRAWN_GREY = 127
"""What `partial_image` shows where nothing is drawn yet."""

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class TextPart:
    """The text that one token adds; empty for a token that ends in the middle of a character."""

    text: str
    token_id: int


@dataclass(frozen=True, slots=True)
class PositionPart:
    """One position of a drawing, in raster order."""

    index: int
    codes: tuple[int, ...]


class Reply(Generic[Part]):
    """What a request has given so far. Any number of threads may read it, from its first part or later."""

    def __init__(self, notify: Callable[[Any], None] | None = None):
        """The engine's thread calls `notify` with the reply after each part and at the end; it must be quick."""
        self._notify = notify
        self._changed = threading.Condition()
        self._parts: list[Part] = []
        self._error: Exception | None = None
        self._has_ended = False
        self.is_cancelled = False

    @property
    def parts(self) -> list[Part]:
        """The parts so far."""
        with self._changed:
            return list(self._parts)

    @property
    def has_ended(self) -> bool:
        """Whether no more parts will come."""
        return self._has_ended

    @property
    def error(self) -> Exception | None:
        """Why the request has ended early."""
        return self._error

    def __iter__(self) -> Iterator[Part]:
        """Yields the parts from the first on, and waits for those to come.

        Raises:
            CancelledError: the request was cancelled, or its engine closed.
            UforkError: the request's own error.
        """
        index = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda index=index: len(self._parts) > index or self._has_ended)  # type: ignore[misc]
                if len(self._parts) == index:
                    break
                part = self._parts[index]
            yield part
            index += 1
        if self._error:
            raise self._error

    def cancel(self) -> None:
        """Ends the request before the engine's next step; without effect on one that has ended."""
        self.is_cancelled = True

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Waits for the end.

        Raises:
            TimeoutError: it has not come after `timeout_seconds`.
            CancelledError, UforkError: as in iterating.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_ended, timeout_seconds):
                raise TimeoutError(f"no reply after {timeout_seconds} s")
        if self._error:
            raise self._error

    def add(self, part: Part) -> None:
        """Adds a part; called by the engine. Raises what `notify` raises."""
        with self._changed:
            self._parts.append(part)
            self._changed.notify_all()
        if self._notify:
            self._notify(self)

    def end(self, error: Exception | None = None) -> None:
        """Ends the request; called by the engine, once. What `notify` raises then is logged."""
        with self._changed:
            self._error, self._has_ended = error, True
            self._changed.notify_all()
        if self._notify:
            try:
                self._notify(self)
            except Exception:  # of the caller's function, whatever it is
                log.exception("the function that is notified of a reply has failed at its end")


class AnswerReply(Reply[TextPart]):
    """A streamed answer."""

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(part.text for part in self.parts)

    def result(self, timeout_seconds: float | None = None) -> str:
        """Waits for the whole answer; raises as `wait`."""
        self.wait(timeout_seconds)
        return self.text


class DrawingReply(Reply[PositionPart]):
    """A drawing that comes position by position."""

    def __init__(self, codec: ImageCodec, notify: Callable[[Any], None] | None = None):
        super().__init__(notify)
        self._codec = codec

    @property
    def codes(self) -> np.ndarray:
        """Codes of the positions so far, int64 [N, C]."""
        codes = [part.codes for part in self.parts]
        return np.array(codes, np.int64).reshape(len(codes), self._codec.codes_per_position)

    def image(self) -> np.ndarray:
        """The image so far, uint8 [rows, columns, 3], with grey where nothing is drawn yet."""
        return partial_image(self._codec, self.codes)

    def result(self, timeout_seconds: float | None = None) -> np.ndarray:
        """Waits for the whole image, uint8 [rows, columns, 3]; raises as `wait`."""
        self.wait(timeout_seconds)
        return self.image()


def partial_image(codec: ImageCodec, codes_NC: np.ndarray) -> np.ndarray:
    """Decodes the first N positions of an image, uint8 [rows, columns, 3]; the others are grey.

    A codec whose decoder is convolutional changes the pixels at the edge of what is drawn when their neighbours come.
    """
    num_positions = codec.config.num_positions
    last_C = codes_NC[-1:] if len(codes_NC) else np.zeros((1, codec.codes_per_position), np.int64)
    filled_NC = np.concatenate((codes_NC, last_C.repeat(num_positions - len(codes_NC), axis=0)))
    image = codec.decode(filled_NC.reshape(1, codec.grid_rows, codec.grid_columns, -1))[0]
    is_drawn = (np.arange(num_positions) < len(codes_NC)).reshape(codec.grid_rows, codec.grid_columns)
    px_per_position = (image.shape[0] // codec.grid_rows, image.shape[1] // codec.grid_columns)
    return np.where(np.kron(is_drawn, np.ones(px_per_position, bool))[..., None], image, np.uint8(_UNDRAWN_GREY))


@dataclass(eq=False, kw_only=True)
class AnswerJob:
    """An answer from its request to its end."""

    reply: AnswerReply
    config: AnswerConfig
    image: np.ndarray
    """uint8 [rows, columns, 3]."""
    question_ids: list[int]
    num_prompt_tokens: int
    uniform_N: Tensor
    """A number in [0, 1) for each token."""
    slots: list[Slot] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    shown: str = ""
    """The text that the reply has."""


@dataclass(eq=False, kw_only=True)
class DrawingJob:
    """A drawing from its request to its end."""

    reply: DrawingReply
    config: DrawConfig
    prompt_ids: list[int]
    num_prompt_tokens: int
    uniform_NC: Tensor
    """Numbers in [0, 1) for each position."""
    slots: list[Slot] = field(default_factory=list)
    """One, and with guidance a second one for the sequence without a caption."""
    codes: list[list[int]] = field(default_factory=list)
    """Of the positions drawn so far."""


Job = AnswerJob | DrawingJob


def cancelled() -> CancelledError:
    """Returns the error of a request that was cancelled."""
    return CancelledError("the request was cancelled")
