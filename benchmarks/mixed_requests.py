"""Drawings and answers of mixed lengths: continuous batching against one after the other.

requests -> an engine's thread, which gets all of them at once or one by one over time -> times
requests -> model.draw and model.answer, one at a time                              -> times
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.workloads.unending_tokenizer import UnendingTokenizer
from ufork.data.prompts import generation_prompt, question_prompt
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.config import AnswerConfig, DrawConfig, EngineConfig
from ufork.infer.engine import Engine
from ufork.infer.model import TrainedModel
from ufork.infer.requests import AnswerReply, DrawingReply, Reply
from ufork.model.unifork import UniFork
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import RqvaeConfig

WORDS = "a red dog left of two green cats and an apple on top of the blue house".split()
NUM_POSITIONS, PATCH_PX = 64, 8
FEWEST_WORDS, MOST_WORDS = 2, 24
FEWEST_TOKENS, MOST_TOKENS = 8, 64


@dataclass(frozen=True, kw_only=True)
class Request:
    """A drawing, or a question about `image`."""

    text: str
    draw: DrawConfig
    answer: AnswerConfig
    image: np.ndarray | None

    def ask(self, engine: Engine, notify: Callable[[Reply[Any]], None]) -> AnswerReply | DrawingReply:
        """Asks an engine."""
        if self.image is None:
            return engine.draw(self.text, self.draw, notify=notify)
        return engine.answer(self.image, self.text, self.answer, notify=notify)

    def run(self, model: TrainedModel) -> None:
        """Computes it alone, by the functions for batches."""
        if self.image is None:
            model.draw([self.text], self.draw)
        else:
            model.answer(self.image[None], [self.text], self.answer)


def mixed_requests(number: int, image_px: int, seed: int = 0) -> list[Request]:
    """Returns drawings and questions in turn, with prompts and answers of random lengths."""
    rng = np.random.default_rng(seed)
    requests = []
    for index in range(number):
        words = rng.choice(WORDS, rng.integers(FEWEST_WORDS, MOST_WORDS + 1))
        image = rng.integers(0, 256, (image_px, image_px, 3), dtype=np.uint8) if index % 2 else None
        max_tokens = int(rng.integers(FEWEST_TOKENS, MOST_TOKENS + 1))
        requests.append(
            Request(
                text=" ".join(words),
                draw=DrawConfig(seed=index),
                answer=AnswerConfig(max_tokens=max_tokens),
                image=image,
            )
        )
    return requests


def compare(model: TrainedModel, number: int, repeats: int = 3) -> dict[str, Any]:
    """Returns medians of `repeats` rounds, in which the ways of running `number` requests take turns.

    The first part of a request is its first position or token. Its time is from the call that asks the engine to the
    engine's notification. `alone` is the time of the same request when the engine has no other; the ratios are the
    times of all requests at once, and of requests that come one by one over the time that all took, divided by it.
    """
    requests = mixed_requests(number, model.image_px)
    rounds = []
    for _ in range(repeats):
        # without the engine's thread: beside its OpenMP threads, those of this thread would sleep at every barrier
        one_by_one_s = _seconds(lambda: [request.run(model) for request in requests])
        with Engine(model, EngineConfig(max_waiting=number)) as engine:
            serve(engine, requests)
            alone = [serve(engine, [request]).first_parts[0] for request in requests]
            at_once = serve(engine, requests)
            over_time = serve(engine, requests, interval_seconds=at_once.seconds / number)
        rounds.append((one_by_one_s, at_once.seconds, alone, at_once.first_parts, over_time.first_parts))
    one_by_one, together, *first_parts = (list(column) for column in zip(*rounds, strict=True))
    alone, at_once, over_time = (np.array(seconds) for seconds in first_parts)
    return {
        "requests": number,
        "one_after_the_other_s": round(statistics.median(one_by_one), 3),
        "engine_s": round(statistics.median(together), 3),
        "throughput_ratio": round(statistics.median(a / t for a, t in zip(one_by_one, together, strict=True)), 2),
        "first_part_ms": {
            name: _summary(1000 * seconds, digits=1)
            for name, seconds in (("alone", alone), ("at_once", at_once), ("over_time", over_time))
        },
        "first_part_ratio": {"at_once": _summary(at_once / alone), "over_time": _summary(over_time / alone)},
    }


@dataclass(frozen=True, kw_only=True)
class Served:
    """Seconds of a round."""

    seconds: float
    """From the first request to the last end, images included."""
    first_parts: list[float]
    """From each request to its first part."""


def serve(engine: Engine, requests: Sequence[Request], interval_seconds: float = 0.0) -> Served:
    """Serves requests that come so far apart, by the engine's own thread."""
    asked: list[float] = []
    firsts: list[list[float]] = [[] for _ in requests]
    replies = []
    start = time.perf_counter()
    for number, (request, first) in enumerate(zip(requests, firsts, strict=True)):
        time.sleep(max(0.0, start + number * interval_seconds - time.perf_counter()))
        asked.append(time.perf_counter())
        replies.append(request.ask(engine, lambda _, first=first: first or first.append(time.perf_counter())))
    for reply in replies:
        reply.wait()
    for reply in replies:
        reply.result()
    seconds = time.perf_counter() - start
    return Served(seconds=seconds, first_parts=[first[0] - came for first, came in zip(firsts, asked, strict=True)])


def _summary(values: np.ndarray, digits: int = 2) -> dict[str, float]:
    """Returns quantiles over all requests of all rounds."""
    return {
        name: round(float(np.quantile(values, share)), digits)
        for name, share in (("median", 0.5), ("p90", 0.9), ("most", 1.0))
    }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def with_tokenizers(model: UniFork) -> TrainedModel:
    """Returns `model` with an image tokenizer of NUM_POSITIONS positions, and answers that do not end early."""
    side = math.isqrt(NUM_POSITIONS)
    sizes = model.dimensions.model_dump(exclude={"vocab_size"})
    codec = ImageCodec(RQVAE(RqvaeConfig(image_px=side * PATCH_PX, patch_px=PATCH_PX, hidden_width=64, **sizes)))
    model.set_codebook(codec.codebook)
    texts = ["".join(generation_prompt(" ".join(WORDS))), question_prompt(" ".join(WORDS))]
    tokenizer = UnendingTokenizer(TextTokenizer.train(texts, vocab_size=model.dimensions.vocab_size))
    return TrainedModel(model, tokenizer, codec.on(model.trunk.token_embedding.weight.device))  # type: ignore[arg-type]
