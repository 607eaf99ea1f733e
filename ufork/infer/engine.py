"""Continuous batching: draws and answers for requests that come at any time, in batches that change from step to step.

    draw, answer -> queue -> free slots: prompts run, first position or token -> steps -> reply ends, slots free

A step decodes one more position of every drawing and one more token of every answer under way; their rows pass the
trunk together, then each task's branch and head. Requests that wait start between two steps or before a head, as soon
as slots are free.
A request's result is that of the same request alone, up to rounding: each has its own sampling, and its random numbers
come from its own seed.

    with Engine(model) as engine:
        drawing, answer = engine.draw("a red dog"), engine.answer(image, "what is this?")
        for part in answer: ...
        drawing.result()
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch

from ufork.data.prompts import generation_prompt, question_prompt
from ufork.errors import CancelledError, ConfigError, QueueFullError
from ufork.infer.config import AnswerConfig, DrawConfig, EngineConfig
from ufork.infer.device import use_device
from ufork.infer.model import TrainedModel
from ufork.infer.requests import AnswerJob, AnswerReply, DrawingJob, DrawingReply, Job, cancelled
from ufork.infer.running import Running, RunningAnswers, RunningDrawings
from ufork.infer.sampling import uniform_numbers
from ufork.infer.slots import run_together
from ufork.vocabulary import Prompt, Task

log = logging.getLogger(__name__)


class Engine:
    """Requests waiting and under way. Any thread may ask; one thread, by default its own, computes."""

    def __init__(self, model: TrainedModel, config: EngineConfig | None = None):
        """Allocates nothing yet; `start`, or `with`, starts the thread that computes."""
        self.model, self.config = model, config or EngineConfig()
        self._running: dict[Task, Running[Any]] = {}
        if Task.UNDERSTANDING in model.tasks:
            self._running[Task.UNDERSTANDING] = RunningAnswers(model, self.config)
        if Task.GENERATION in model.tasks:
            self._running[Task.GENERATION] = RunningDrawings(model, self.config)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Task, Job]] = deque()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts a thread that computes until `close`."""
        self._thread = threading.Thread(target=self._run, name="ufork engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends all requests that have not ended, and the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
        self._end_all(CancelledError("the engine was closed before the request had ended"))

    @property
    def num_waiting(self) -> int:
        """Requests that have not started."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests under way."""
        return sum(len(running.jobs) for running in self._running.values())

    def draw(
        self, prompt: str, config: DrawConfig | None = None, *, notify: Callable[[DrawingReply], None] | None = None
    ) -> DrawingReply:
        """Asks for a drawing of `prompt`, sampled as `config` says (the model's `draw_config` by default).

        Args:
            prompt: a text.
            config: `batch_prompts` has no effect.
            notify: called with the reply after each position and at the end; it must be quick. Its errors end the
                request.

        Raises:
            ConfigError: the model has no generation branch, or the prompt is empty or too long.
            QueueFullError: too many requests are waiting.
            CancelledError: the engine is closed.
        """
        config = config or self.model.draw_config
        self.model.check_texts(Task.GENERATION, [prompt], "prompt")
        prompt_ids = self._encode(generation_prompt(prompt), "prompt")
        codec = self.model.codec
        job = DrawingJob(
            reply=DrawingReply(codec, notify),
            config=config,
            prompt_ids=prompt_ids,
            num_prompt_tokens=len(prompt_ids),
            uniform_NC=uniform_numbers([config.seed], codec.config.num_positions, codec.codes_per_position)[0],
        )
        self._enqueue(Task.GENERATION, job)
        return job.reply

    def answer(
        self,
        image: np.ndarray,
        question: str,
        config: AnswerConfig | None = None,
        *,
        notify: Callable[[AnswerReply], None] | None = None,
    ) -> AnswerReply:
        """Asks a question about an image, uint8 [image_px, image_px, 3]; the answer is decoded as `config` says.

        Raises as `draw`, and ConfigError for an image of another kind or an answer longer than the engine allows.
        """
        config = config or AnswerConfig()
        self.model.check_texts(Task.UNDERSTANDING, [question], "question")
        expected = (self.model.image_px, self.model.image_px, 3)
        if image.dtype != np.uint8 or image.shape != expected:
            raise ConfigError(
                f"expected an image of uint8 {expected}, found {image.dtype} {image.shape}; `decode_image` makes one of"
                " a file's bytes"
            )
        if config.max_tokens > self.config.max_answer_tokens:
            raise ConfigError(
                f"max_tokens is {config.max_tokens}, this engine allows {self.config.max_answer_tokens}"
                " (max_answer_tokens)"
            )
        question_ids = self._encode(question_prompt(question), "question")
        job = AnswerJob(
            reply=AnswerReply(notify),
            config=config,
            image=image.copy(),
            question_ids=question_ids,
            num_prompt_tokens=self.model.codec.config.tokens_per_image + len(question_ids),
            uniform_N=uniform_numbers([config.seed], config.max_tokens, 1)[0, :, 0],
        )
        self._enqueue(Task.UNDERSTANDING, job)
        return job.reply

    @torch.inference_mode()
    def step(self) -> bool:
        """Starts waiting requests, then decodes one position or token of each request under way.

        Returns:
            Whether requests are waiting or under way. Not to be called beside the engine's own thread.
        """
        self._drop_cancelled()
        self._start_waiting()
        busy = [running for running in self._running.values() if running.jobs]
        if busy:
            self._decode(busy)
        return bool(self._waiting) or self.num_running > 0

    def _start_waiting(self) -> None:
        """Starts requests as long as slots are free: each has its first position or token when its prompt has run."""
        while chunk := self._next_chunk():
            task, jobs = chunk
            self._start(self._running[task], jobs)

    def _start(self, running: Running[Any], jobs: list[Job]) -> None:
        try:
            running.start(jobs)
        except Exception as error:  # of the device or of torch
            log.exception("%d requests cannot be started", len(jobs))
            running.abandon(jobs, error)

    def _decode(self, busy: list[Running[Any]]) -> None:
        try:
            stepping = [list(running.jobs) for running in busy]
            states = run_together(self.model.model, [running.rows() for running in busy])
            for running, jobs, states_RD in zip(busy, stepping, states, strict=True):
                self._start_waiting()  # those that have come meanwhile need not wait for the whole step
                running.choose(jobs, states_RD)
        except Exception as error:  # of the device or of torch; keys and values may be half written
            log.exception("all requests under way have ended with an error")
            for running in busy:
                running.fail(error)

    def _run(self) -> None:
        try:
            use_device(self.model.device)
            while self._await_work():
                self.step()
        except Exception as error:  # nobody would see it: all requests end with it
            log.exception("the engine has stopped")
            with self._changed:
                self._is_closed = True
            self._end_all(error)

    def _await_work(self) -> bool:
        """Waits for requests; returns whether there are any, and not the end of the engine."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._waiting or self.num_running)
            return not self._is_closed

    def _encode(self, prompt: Prompt, name: str) -> list[int]:
        token_ids = self.model.tokenizer.encode(prompt)
        if len(token_ids) > self.config.max_prompt_tokens:
            raise ConfigError(
                f"a {name} has {len(token_ids):,} tokens, this engine reads {self.config.max_prompt_tokens:,}"
                " (max_prompt_tokens); shorten it"
            )
        return token_ids

    def _enqueue(self, task: Task, job: Job) -> None:
        with self._changed:
            if self._is_closed:
                raise CancelledError("the engine is closed")
            if len(self._waiting) >= self.config.max_waiting:
                raise QueueFullError(
                    f"{len(self._waiting)} requests are waiting, as many as this engine allows (max_waiting); ask again"
                    " when one has ended"
                )
            self._waiting.append((task, job))
            self._changed.notify_all()

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = [job for _, job in self._waiting if job.reply.is_cancelled]
            self._waiting = deque(waiting for waiting in self._waiting if waiting[1] not in dropped)
        for job in dropped:
            job.reply.end(cancelled())
        for running in self._running.values():
            running.drop_cancelled()

    def _next_chunk(self) -> tuple[Task, list[Job]] | None:
        """Takes requests of one task, up to `prefill_tokens`, from those that can start: the shortest prompts first.

        Free slots are for the requests that came first; of these, short before long makes the mean waiting time least.
        """
        with self._changed:
            can_start = [
                waiting
                for task, running in self._running.items()
                for waiting in itertools.islice(
                    (waiting for waiting in self._waiting if waiting[0] is task), running.room
                )
            ]
            if not can_start:
                return None
            can_start.sort(key=lambda waiting: waiting[1].num_prompt_tokens)
            first_task = can_start[0][0]
            jobs: list[Job] = []
            num_tokens = 0
            for job in (job for task, job in can_start if task is first_task):
                num_tokens += job.num_prompt_tokens
                if jobs and num_tokens > self.config.prefill_tokens:
                    break
                jobs.append(job)
            self._waiting = deque(waiting for waiting in self._waiting if waiting[1] not in jobs)
            return first_task, jobs

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
        for _, job in waiting:
            job.reply.end(error)
        for running in self._running.values():
            running.fail(error)
