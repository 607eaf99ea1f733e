"""Drawings and answers of mixed lengths: continuous batching against one after the other.

requests -> an engine that gets all of them at once, or one after the other in time -> times
requests -> model.draw and model.answer, one at a time                              -> times
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ufork.infer.config import AnswerConfig, DrawConfig, EngineConfig
from ufork.infer.engine import Engine
from ufork.infer.model import TrainedModel
from ufork.infer.requests import Reply

WORDS = "a red dog left of two green cats and an apple on top of the blue house".split()
FEWEST_WORDS, MOST_WORDS = 2, 24
FEWEST_TOKENS, MOST_TOKENS = 8, 64


@dataclass(frozen=True, kw_only=True)
class Request:
    """A drawing, or a question about `image`."""

    text: str
    draw: DrawConfig
    answer: AnswerConfig
    image: np.ndarray | None

    def ask(self, engine: Engine, notify: Callable[[Reply[Any]], None]) -> Reply[Any]:
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

    `first_part` is the time from a request to its first position or token as a multiple of the same time in an idle
    engine; of all requests at once, and of requests that come one by one over the time that all took.
    """
    requests = mixed_requests(number, model.image_px)
    rounds = []
    with Engine(model, EngineConfig(max_waiting=number)) as engine:
        _ask(engine, requests)
        for _ in range(repeats):
            alone = _seconds(lambda: [request.run(model) for request in requests])
            idle = [_ask(engine, [request])[0] for request in requests]
            start = time.perf_counter()
            at_once = _ask(engine, requests)
            together = time.perf_counter() - start
            over_time = _ask(engine, requests, interval_seconds=together / number)
            rounds.append((alone, together, _ratios(at_once, idle), _ratios(over_time, idle)))
    alone, together, at_once, over_time = (list(column) for column in zip(*rounds, strict=True))
    return {
        "requests": number,
        "one_after_the_other_s": round(statistics.median(alone), 3),
        "engine_s": round(statistics.median(together), 3),
        "throughput_ratio": round(statistics.median(a / t for a, t in zip(alone, together, strict=True)), 2),
        "first_part_ratio": {"at_once": _summary(at_once), "over_time": _summary(over_time)},
    }


def _ask(engine: Engine, requests: Sequence[Request], interval_seconds: float = 0.0) -> list[float]:
    """Returns the seconds from each request to its first part; waits for all ends."""
    firsts: list[list[float]] = [[] for _ in requests]
    starts, replies = [], []
    for request, first in zip(requests, firsts, strict=True):
        starts.append(time.perf_counter())
        replies.append(request.ask(engine, lambda _, first=first: first or first.append(time.perf_counter())))  # type: ignore[misc]
        time.sleep(interval_seconds)
    for reply in replies:
        reply.result()  # type: ignore[attr-defined]
    return [first[0] - start for first, start in zip(firsts, starts, strict=True)]


def _ratios(seconds: Sequence[float], idle: Sequence[float]) -> list[float]:
    return [found / alone for found, alone in zip(seconds, idle, strict=True)]


def _summary(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    ratios = [ratio for of_round in rounds for ratio in of_round]
    return {"median": round(statistics.median(ratios), 2), "p90": round(float(np.quantile(ratios, 0.9)), 2)}


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
