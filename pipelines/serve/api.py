"""The JSON API: bodies of requests in, streams of events out.

    describe -> what the model can do, its defaults, the server's limits
    draw: {"prompt", "num_images", "sampling"} -> Stream of drawings
    answer: {"image", "question", "sampling"} -> Stream of an answer

A body at fault, a full queue and a task that the model lacks are errors before the stream begins.
"""

import base64
import json
from typing import Any

from pydantic import Field, PositiveInt

from pipelines.serve.config import ServeConfig
from pipelines.serve.pictures import Pictures
from pipelines.serve.streams import Arrival, Stream, answer_events, drawing_events
from ufork.config import Config
from ufork.errors import ConfigError
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.engine import Engine
from ufork.infer.requests import DrawingReply

MAX_TEXT_BYTES = 256 * 2**10
"""Largest body besides an image."""
MAX_VALUES = 20_000
"""Most commas and brackets of a body; a prompt may hold half of them, and base64 has none."""


class DrawBody(Config):
    """Body of a request to draw."""

    prompt: str
    num_images: PositiveInt = 1
    """Image i has the seed of the sampling plus i."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Keys of `DrawConfig`; the model has the defaults."""


class AnswerBody(Config):
    """Body of a question."""

    image: str
    """A PNG, JPEG or WebP file in base64."""
    question: str
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Keys of `AnswerConfig`."""


class Api:
    """What clients may ask of an engine."""

    def __init__(self, engine: Engine, pictures: Pictures, config: ServeConfig, *, name: str):
        """`name` is how the model is called on the page."""
        self._engine, self._pictures, self._config, self._name = engine, pictures, config, name
        self.max_body_bytes = -(-config.max_image_bytes // 3) * 4 + MAX_TEXT_BYTES
        """Largest body of a request."""

    def describe(self) -> dict[str, Any]:
        """Returns the model, the defaults of sampling and the limits."""
        model = self._engine.model
        return {
            "name": self._name,
            "tasks": [str(task) for task in model.tasks],
            "image_px": model.image_px,
            "device": str(model.device),
            "precision": model.precision,
            "draw": model.draw_config.model_dump(exclude={"batch_prompts"}),
            "answer": AnswerConfig().model_dump(exclude={"batch_questions"}),
            "limits": {
                "max_images": self._max_images,
                "max_image_bytes": self._config.max_image_bytes,
                "max_answer_tokens": self._engine.config.max_answer_tokens,
                "max_seconds": self._config.max_seconds,
            },
        }

    def draw(self, data: bytes | bytearray) -> Stream:
        """Asks for the images of a prompt.

        Raises:
            ConfigError: the body is at fault.
            QueueFullError: too many requests are waiting; none of the images is drawn.
        """
        body = DrawBody.from_mapping(_object(data), origin="request")
        if body.num_images > self._max_images:
            raise ConfigError(
                f"num_images is {body.num_images}, this server draws at most {self._max_images} at a time"
            )
        default = self._engine.model.draw_config
        first = DrawConfig.from_mapping({**default.model_dump(), **body.sampling}, origin="sampling")
        configs = [
            DrawConfig.from_mapping({**first.model_dump(), "seed": first.seed + index}, origin="sampling")
            for index in range(body.num_images)
        ]
        arrival = Arrival(self._config.max_seconds)
        replies: list[DrawingReply] = []
        try:
            for config in configs:
                replies.append(self._engine.draw(body.prompt, config, notify=arrival.notify))
        except Exception:
            for reply in replies:
                reply.cancel()
            raise
        events = drawing_events(
            replies,
            [config.seed for config in configs],
            num_positions=self._engine.model.codec.config.num_positions,
            pictures=self._pictures,
            arrival=arrival,
        )
        return Stream(replies, events)

    def answer(self, data: bytes | bytearray) -> Stream:
        """Asks a question about an image.

        Raises:
            ConfigError: the body is at fault.
            SampleError: the image cannot be decoded, or is too large.
            QueueFullError: too many requests are waiting.
        """
        body = AnswerBody.from_mapping(_object(data), origin="request")
        sampling = AnswerConfig.from_mapping(body.sampling, origin="sampling")
        try:
            file = base64.b64decode(body.image, validate=True)
        except ValueError:
            raise ConfigError("image: expected a PNG, JPEG or WebP file in base64") from None
        if len(file) > self._config.max_image_bytes:
            raise ConfigError(
                f"the image has {len(file) / 2**20:.1f} MiB, this server reads {self._config.max_image_mib:g} MiB"
                " (--max-image-mib); make it smaller"
            )
        image = self._pictures.read_upload(file)
        arrival = Arrival(self._config.max_seconds)
        reply = self._engine.answer(image, body.question, sampling, notify=arrival.notify)
        return Stream([reply], answer_events(reply, arrival=arrival))

    @property
    def _max_images(self) -> int:
        return min(self._config.max_images, self._config.max_waiting)


def _object(data: bytes | bytearray) -> dict[str, Any]:
    if sum(data.count(mark) for mark in b",[{") > MAX_VALUES:  # a value takes thirty times as much memory as its text
        raise ConfigError(f"the body has more than {MAX_VALUES:,} commas and brackets")
    try:
        value = json.loads(data, object_pairs_hook=_distinct, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ConfigError("the body is not JSON") from None
    if not isinstance(value, dict):
        raise ConfigError(f"the body: expected a JSON object, found {type(value).__name__}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ConfigError("the body has a key twice")
    return value


def _no_number(name: str) -> None:
    raise ConfigError(f"the body is not JSON: {name} is no number")
