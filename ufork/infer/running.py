"""The requests of one task that an engine has under way: what enters the next step, and what its states choose.

    start: prompts -> slots -> first choice      entering + states of a step -> choose: one more choice per request

Nothing but the cache stays on the device from step to step: what enters a step is made from the codes and tokens that
the host has. Requests can therefore come and go between any two steps.

Shapes: B requests, R rows (sequences; of drawings two per request with guidance), C codes per position, E features of a
code, D width.
"""

import functools
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ufork.data.prompts import EncodedSample, dropped_prompt
from ufork.errors import NonFiniteError
from ufork.infer.answer import question_about
from ufork.infer.cache import MASK_ALIGNMENT_TOKENS
from ufork.infer.config import EngineConfig
from ufork.infer.draw import draw_position, open_image
from ufork.infer.model import TrainedModel
from ufork.infer.requests import AnswerJob, DrawingJob, PositionPart, TextPart, cancelled
from ufork.infer.sampling import Sampling, extrapolated, sample
from ufork.infer.sequences import SharedPrompt, run_prompts
from ufork.infer.slots import Rows, Slots
from ufork.model.unifork import GenerationBranch, UnderstandingBranch
from ufork.vocabulary import Task

AnyJob = TypeVar("AnyJob", AnswerJob, DrawingJob)


class Running(ABC, Generic[AnyJob]):
    """Jobs of one task and their slots."""

    task: Task
    slots_per_job: int

    def __init__(self, model: TrainedModel, *, max_jobs: int, capacity_tokens: int):
        self.model, self.max_jobs, self.device = model, max_jobs, model.device
        self.num_positions = model.codec.config.num_positions
        self.jobs: list[AnyJob] = []
        capacity_tokens += -capacity_tokens % MASK_ALIGNMENT_TOKENS
        self.slots = Slots(
            num_slots=max_jobs * self.slots_per_job, capacity_tokens=capacity_tokens, device=model.device
        )

    @property
    def room(self) -> int:
        """How many more jobs can start."""
        return self.max_jobs - len(self.jobs)

    def start(self, jobs: list[AnyJob]) -> None:
        """Runs the prompts of `jobs` and makes the first choice of each. A job whose prompt is at fault ends."""
        prompts: list[EncodedSample] = []
        started: list[AnyJob] = []
        for job in jobs:
            try:
                prompt = self.prompt_of(job)
            except Exception as error:  # of the image, or of the memory that its codes take
                job.reply.end(error)
                continue
            job.slots = [self.slots.take(len(prompt.token_ids_L))]
            prompts.append(prompt)
            started.append(job)
        self.jobs += started
        if not started:
            return
        states_BD = run_prompts(
            self.model.model,
            prompts,
            self.slots.cache,
            image_is_open=self.task is Task.GENERATION,
            sequences_B=torch.tensor([job.slots[0].index for job in started], device=self.device),
        )
        self._advance(started, *self.begun(started, states_BD))

    def abandon(self, jobs: list[AnyJob], error: Exception) -> None:
        """Ends `jobs`, whose start has failed."""
        for job in jobs:
            for slot in job.slots:
                self.slots.cache.erase(slot.index)
        for job in jobs:
            if job in self.jobs:
                self._end(job, error)

    def rows(self) -> Rows:
        """Returns what enters the next step."""
        embedded_RD = self.entering()
        positions_R, attend = self.slots.extend(embedded_RD.dtype)
        return Rows(task=self.task, embedded_RD=embedded_RD, positions_R=positions_R, attend=attend)

    def choose(self, jobs: list[AnyJob], states_RD: Tensor) -> None:
        """Makes the next choice of `jobs`, which were all when the step began, from its states."""
        self._advance(jobs, [[slot.index for slot in job.slots] for job in jobs], states_RD)

    def drop_cancelled(self) -> None:
        """Ends jobs that were cancelled."""
        for job in [job for job in self.jobs if job.reply.is_cancelled]:
            self._end(job, cancelled())

    def fail(self, error: Exception) -> None:
        """Ends all jobs with `error`, and drops all keys and values."""
        jobs, self.jobs = self.jobs, []
        self.slots.clear()
        for job in jobs:
            job.reply.end(error)

    @abstractmethod
    def prompt_of(self, job: AnyJob) -> EncodedSample:
        """Returns the prompt of a job, which its first slot is for."""

    def begun(self, jobs: list[AnyJob], states_BD: Tensor) -> tuple[list[list[int]], Tensor]:
        """Returns the rows of each job, and the states RD of all rows, given those after the prompts."""
        return [[row] for row in range(len(jobs))], states_BD

    @abstractmethod
    def entering(self) -> Tensor:
        """Returns the embedded last choices, RD."""

    @abstractmethod
    def chosen(self, jobs: list[AnyJob], rows: list[list[int]], states_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the next choice of each job, whose sequences are `rows` of the states, and whether it is one: B."""

    @abstractmethod
    def record(self, job: AnyJob, choice: Any) -> bool:
        """Gives a choice to the job's reply; returns whether it was the last one."""

    def _advance(self, jobs: list[AnyJob], rows: list[list[int]], states_RD: Tensor) -> None:
        choices, is_finite_B = self.chosen(jobs, rows, states_RD)
        finite = is_finite_B.tolist()
        for job, is_finite in zip(jobs, finite, strict=True):
            if not is_finite:
                for slot in job.slots:  # before any slot moves
                    self.slots.cache.erase(slot.index)
        for job, choice, is_finite in zip(jobs, choices.tolist(), finite, strict=True):
            if not is_finite:
                self._end(job, NonFiniteError("the model computes values that are not finite for this request"))
                continue
            try:
                is_last = self.record(job, choice)
            except Exception as error:  # of the function that the caller wants notified
                self._end(job, error)
                continue
            if is_last:
                self._end(job)

    def _end(self, job: AnyJob, error: Exception | None = None) -> None:
        self.jobs.remove(job)
        for slot in job.slots:
            self.slots.free(slot)
        job.reply.end(error)


class RunningAnswers(Running[AnswerJob]):
    """Answers under way."""

    task = Task.UNDERSTANDING
    slots_per_job = 1

    def __init__(self, model: TrainedModel, config: EngineConfig):
        capacity_tokens = model.codec.config.tokens_per_image + config.max_prompt_tokens + config.max_answer_tokens
        super().__init__(model, max_jobs=config.max_answers, capacity_tokens=capacity_tokens)

    def prompt_of(self, job: AnswerJob) -> EncodedSample:
        """Encodes the image, alone: its codes do not depend on other requests."""
        codes_YXC = self.model.codec.encode(job.image[None])[0]
        return question_about(codes_YXC, job.question_ids, self.model.tokenizer.padding_id)

    def entering(self) -> Tensor:
        """Returns the embedded last tokens."""
        by_slot = sorted(self.jobs, key=lambda job: job.slots[0].index)
        tokens_R = torch.tensor([job.token_ids[-1] for job in by_slot], device=self.device)
        return self.model.model.trunk.token_embedding(tokens_R)

    def chosen(self, jobs: list[AnswerJob], rows: list[list[int]], states_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns tokens B."""
        branch: UnderstandingBranch = self.model.model.branches[self.task]  # type: ignore[assignment]
        logits_RV = branch.head.logits(states_RD)
        logits_BV = logits_RV.index_select(0, torch.tensor([row for (row,) in rows], device=self.device))
        uniform_B = torch.stack([job.uniform_N[len(job.token_ids)] for job in jobs]).to(self.device)
        tokens_B = sample(logits_BV, Sampling.of([job.config for job in jobs], self.device), uniform_B)
        return tokens_B, _is_finite(logits_BV)

    def record(self, job: AnswerJob, choice: int) -> bool:
        """Streams the text that a token adds, without blanks at either end of the answer."""
        job.token_ids.append(choice)
        tokenizer = self.model.tokenizer
        is_last = choice == tokenizer.turn_end_id or len(job.token_ids) == job.config.max_tokens
        text = tokenizer.decode(job.token_ids).strip()
        if not is_last:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}").rstrip()  # the bytes of a character that is not complete
        added = text[len(job.shown) :] if text.startswith(job.shown) else ""
        job.shown += added
        job.reply.add(TextPart(added, choice))
        return is_last


class RunningDrawings(Running[DrawingJob]):
    """Drawings under way; one without guidance has one sequence, which stands for both in guidance's formula."""

    task = Task.GENERATION
    slots_per_job = 2

    def __init__(self, model: TrainedModel, config: EngineConfig):
        tokenizer = model.tokenizer
        self.unconditional_prompt = open_image(tokenizer.encode(dropped_prompt()), padding_id=tokenizer.padding_id)
        longest = max(config.max_prompt_tokens + 1, len(self.unconditional_prompt.token_ids_L))
        capacity_tokens = longest + model.codec.config.num_positions
        super().__init__(model, max_jobs=config.max_drawings, capacity_tokens=capacity_tokens)
        self.no_marks = torch.empty(0, dtype=torch.long, device=self.device)

    @functools.cached_property
    def unconditional(self) -> SharedPrompt:
        """The prompt without a caption, with which the second sequence of each drawing with guidance begins."""
        return SharedPrompt(self.model.model, self.unconditional_prompt, image_is_open=True)

    def prompt_of(self, job: DrawingJob) -> EncodedSample:
        """Returns the prompt with its caption."""
        return open_image(job.prompt_ids, padding_id=self.model.tokenizer.padding_id)

    def begun(self, jobs: list[DrawingJob], states_BD: Tensor) -> tuple[list[list[int]], Tensor]:
        """Begins the second sequences of drawings with guidance; their rows come last."""
        rows, states_RD = super().begun(jobs, states_BD)
        guided = [number for number, job in enumerate(jobs) if job.config.guidance != 1]
        if guided:
            for row, number in enumerate(guided, len(jobs)):
                rows[number].append(row)
                jobs[number].slots.append(self.slots.take(self.unconditional.num_tokens))
            sequences_B = torch.tensor([jobs[number].slots[1].index for number in guided], device=self.device)
            states_RD = torch.cat((states_RD, self.unconditional.begin(self.slots.cache, sequences_B)))
        return rows, states_RD

    def entering(self) -> Tensor:
        """Returns the embedded last positions."""
        trunk = self.model.model.trunk
        codes_BC = torch.tensor([job.codes[-1] for job in self.jobs], device=self.device)
        sums_BE = functools.reduce(torch.add, trunk.code_embedding.codebook_KE[codes_BC].unbind(1))
        embedded_BD, _ = trunk.projector(sums_BE, self.no_marks)
        return embedded_BD.index_select(0, self._jobs_of([[slot.index for slot in job.slots] for job in self.jobs]))

    def chosen(self, jobs: list[DrawingJob], rows: list[list[int]], states_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns codes BC."""
        conditional_B = torch.tensor([of_job[0] for of_job in rows], device=self.device)
        unconditional_B = torch.tensor([of_job[-1] for of_job in rows], device=self.device)
        guidance_B1 = torch.tensor([job.config.guidance for job in jobs], device=self.device)[:, None]
        uniform_BC = torch.stack([job.uniform_NC[len(job.codes)] for job in jobs]).to(self.device)
        sampling = Sampling.of([job.config for job in jobs], self.device)
        is_finite = []

        def choose(logits_RK: Tensor, depth: int) -> Tensor:
            logits_BK = extrapolated(logits_RK[conditional_B], logits_RK[unconditional_B], guidance_B1)
            is_finite.append(_is_finite(logits_BK))
            return sample(logits_BK, sampling, uniform_BC[:, depth])

        branch: GenerationBranch = self.model.model.branches[self.task]  # type: ignore[assignment]
        codes_BC, _ = draw_position(branch, states_RD, self._jobs_of(rows), choose)
        return codes_BC, torch.stack(is_finite).all(0)

    def record(self, job: DrawingJob, choice: list[int]) -> bool:
        """Streams a position."""
        job.codes.append(choice)
        job.reply.add(PositionPart(len(job.codes) - 1, tuple(choice)))
        return len(job.codes) == self.num_positions

    def _jobs_of(self, rows: list[list[int]]) -> Tensor:
        """Returns the number R of the job of each row, given the rows of each job."""
        jobs = [0] * sum(map(len, rows))
        for number, of_job in enumerate(rows):
            for row in of_job:
                jobs[row] = number
        return torch.tensor(jobs, device=self.device)


def _is_finite(logits_BK: Tensor) -> Tensor:
    """Returns whether each row's largest logit is finite; it is NaN if any is."""
    return logits_BK.amax(-1).isfinite()
