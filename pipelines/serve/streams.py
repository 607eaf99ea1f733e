"""Events of a request, as they are sent to the client: a picture that grows, text, an error, the end.

    replies of the engine -> drawing_events, answer_events -> dicts, or None while there is nothing new

Every event has the key `event`. None comes at least every `POLL_SECONDS`: the caller looks whether its client is still
there. The last event is `end` or `error`.
"""

import base64
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pipelines.serve.pictures import Pictures
from ufork.errors import UforkError
from ufork.infer.requests import AnswerReply, DrawingReply, Reply

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
"""Longest time without an event or None."""

Event = dict[str, Any]


@dataclass
class Arrival:
    """Waits for parts of some replies, up to a time limit."""

    max_seconds: float
    _changed: threading.Event = field(default_factory=threading.Event)
    _start: float = field(default_factory=time.monotonic)

    def notify(self, reply: Reply[Any]) -> None:
        """Ends the waiting; the engine calls it."""
        self._changed.set()

    def wait(self) -> None:
        """Waits for a part, but not longer than POLL_SECONDS.

        Raises:
            TimeoutError: the time limit has passed; the message is for people.
        """
        self._changed.wait(POLL_SECONDS)
        self._changed.clear()
        if time.monotonic() - self._start > self.max_seconds:
            raise TimeoutError(
                f"the request has taken {self.max_seconds:g} s, the limit of this server (--max-seconds), and was"
                " cancelled"
            )


class Stream:
    """Events of one request. Leaving the block, at the end or earlier, cancels what has not ended."""

    def __init__(self, replies: Sequence[Reply[Any]], events: Iterator[Event | None]):
        self._replies, self._events = replies, events

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for reply in self._replies:
            reply.cancel()

    def __iter__(self) -> Iterator[Event | None]:
        """Yields the events; an error becomes the last one."""
        try:
            yield from self._events
            yield {"event": "end"}
        except Exception as error:  # the client is told, whatever it is
            yield {"event": "error", "message": message_of(error)}


def drawing_events(
    replies: Sequence[DrawingReply], seeds: Sequence[int], *, num_positions: int, pictures: Pictures, arrival: Arrival
) -> Iterator[Event | None]:
    """Yields `picture` for each image now and then and at its end, or `failed`; one that fails ends no other."""
    shown = dict.fromkeys(range(len(replies)), 0)
    while shown:
        arrival.wait()
        yield None
        for index in sorted(shown, key=lambda index: shown[index]):  # each gets its turn
            reply = replies[index]
            if reply.error:
                del shown[index]
                yield {"event": "failed", "image": index, "message": message_of(reply.error)}
                continue
            codes_NC = reply.codes
            if len(codes_NC) == num_positions:
                del shown[index]
                png: bytes | None = pictures.finished(codes_NC)
            elif len(codes_NC) > shown[index]:
                png = pictures.unfinished(codes_NC)
            else:
                continue
            if png is not None:
                if index in shown:
                    shown[index] = len(codes_NC)
                yield {
                    "event": "picture",
                    "image": index,
                    "seed": seeds[index],
                    "positions": len(codes_NC),
                    "of_positions": num_positions,
                    "png": base64.b64encode(png).decode(),
                }


def answer_events(reply: AnswerReply, *, arrival: Arrival) -> Iterator[Event | None]:
    """Yields `text` with what each token adds.

    Raises:
        UforkError: the request's own error.
    """
    num_sent, has_ended = 0, False
    while not has_ended:
        arrival.wait()
        yield None
        has_ended = reply.has_ended  # before the parts: all of them are there then
        parts = reply.parts
        if text := "".join(part.text for part in parts[num_sent:]):
            yield {"event": "text", "text": text}
        num_sent = len(parts)
    if reply.error:
        raise reply.error


def message_of(error: Exception) -> str:
    """Returns what a client is told; errors that are nobody's to act on are logged."""
    if isinstance(error, UforkError | TimeoutError):
        return str(error)
    log.error("a request has failed", exc_info=error)
    return f"the server has failed with {type(error).__name__}; its log shows more"
