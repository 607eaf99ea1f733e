"""Runs a demo: fits the recipe to the machine, runs the verbs from data to report, says what came out.

recipe, values of the command line -> Choice (measured once, then kept in RUN/demo.json)
                                   -> each verb in a process of its own, its output in RUN/logs, one progress line
                                   -> Outcome

A demo that was interrupted or killed is resumed by the same command: each verb keeps what is finished.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pipelines.check_recipe import check_recipe
from pipelines.demo.choice import Choice, choose, recorded_choice, require_class
from pipelines.demo.config import MachineClass
from pipelines.demo.machine import probe_machine
from pipelines.demo.outcome import (
    Outcome,
    low_scores,
    next_commands,
    picture_folders,
    reason_for_low_scores,
    scores_of,
)
from pipelines.demo.progress import DemoProgress
from pipelines.demo.progress_line import ProgressLine, duration
from pipelines.demo.verbs import Verb, demo_verbs
from pipelines.launch.verb_process import Ended, VerbProcess, verb_command
from pipelines.recipe import Recipe, read_recipe

REPEATED_SECONDS = 5.0
"""Expected time of a verb that had finished before: it starts, finds its work done, and ends."""
TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for."""

    path: Path
    """Of the recipe."""
    overrides: tuple[str, ...] = ()
    ranks: int | None = None
    machine_class: str | None = None
    """Name of a class of machine; None for that of this machine."""
    program: str = "ufork"
    """How `ufork` is called here."""


class Demo:
    """One start of a demo."""

    def __init__(self, request: Request, *, environment: Mapping[str, str], out: TextIO) -> None:
        """Fits the recipe to the machine; takes some seconds where that was not done before.

        Raises:
            ConfigError: a value is at fault, or the recipe cannot train on the ranks.
        """
        self.request, self.environment, self.out = request, environment, out
        asked = read_recipe(request.path, request.overrides)
        self.record = asked.run_folder.demo
        known = recorded_choice(self.record)
        self.is_resumed = known is not None and request.machine_class in (None, known.machine_class)
        self.choice = self._kept(known) if known and self.is_resumed else self._measured(asked)
        self.machine_class: MachineClass = require_class(asked.demo, self.choice.machine_class)
        self.values = (*self.choice.values(asked), *request.overrides)
        self.recipe: Recipe = read_recipe(request.path, self.values)
        check_recipe(self.recipe, self.choice.ranks)
        self.verbs = demo_verbs(self.recipe, self.machine_class.seconds, ranks=self.choice.ranks)

    def _kept(self, known: Choice) -> Choice:
        return known.model_copy(update={"ranks": self.request.ranks or known.ranks})

    def _measured(self, asked: Recipe) -> Choice:
        request, machine = self.request, probe_machine(asked.run_folder.path)
        return choose(
            request.path, request.overrides, machine, ranks=request.ranks, machine_class=request.machine_class
        )

    def run(self) -> Outcome:
        """Runs the verbs.

        Raises:
            UforkError: a verb failed, or a folder cannot be written.
            KeyboardInterrupt: Ctrl-C; what is finished is kept.
        """
        self.choice.save(self.record)
        self._announce()
        progress = DemoProgress([self._expected_seconds(verb) for verb in self.verbs])
        line = ProgressLine(self.out)
        training_cores = None
        for number, verb in enumerate(self.verbs):
            ended = self._run_verb(verb, number, progress, line)
            if verb.name == TRAIN and not self._is_finished(verb) and not self.choice.machine.num_gpus:
                training_cores = ended.cpu_seconds / ended.seconds
            progress.finish(counts=not self._is_finished(verb))
            self._note(verb, ended.seconds, finished=True)
        line.clear()
        return Outcome(
            scores=scores_of(self.recipe.run_folder.evaluation),
            seconds=self.choice.seconds,
            training_cores=training_cores,
        )

    def _run_verb(self, verb: Verb, number: int, progress: DemoProgress, line: ProgressLine) -> Ended:
        log = self.recipe.run_folder.logs / verb.log_name
        arguments = [*verb.arguments, str(self.request.path), *self.values]
        process = VerbProcess(verb.name, verb_command(arguments), log, self._environment_of(verb))
        is_first = True

        def watch(seconds: float) -> None:
            nonlocal is_first
            position = verb.position() if verb.position else None
            progress.advance(seconds, position.share if position else None)
            note = f" ({position.note})" if position else ""
            line.show(
                f"[{number + 1}/{len(self.verbs)}] {progress.percent:3.0f}%  {verb.name}{note}"
                f"  about {duration(progress.seconds_left)} left",
                now=is_first,
            )
            is_first = False

        try:
            return process.run(watch)
        except BaseException:
            line.clear()
            self._note(verb, process.seconds, finished=False)
            print(f"stopped in {verb.name}; the same command resumes the run", file=self.out, flush=True)
            raise

    def _expected_seconds(self, verb: Verb) -> float:
        return REPEATED_SECONDS if self._is_finished(verb) else verb.expected_seconds

    def _is_finished(self, verb: Verb) -> bool:
        return verb.name in self.choice.finished

    def _note(self, verb: Verb, seconds: float, *, finished: bool) -> None:
        """Records the time of a verb, unless it had finished at an earlier start."""
        if self._is_finished(verb):
            return
        taken = {**self.choice.seconds, verb.name: self.choice.seconds.get(verb.name, 0.0) + seconds}
        names = (*self.choice.finished, verb.name) if finished else self.choice.finished
        self.choice = self.choice.model_copy(update={"seconds": taken, "finished": names})
        self.choice.save(self.record)

    def _environment_of(self, verb: Verb) -> Mapping[str, str]:
        """Returns the environment of a verb; in a container with a quota, torch would start a thread per core of it."""
        cores = self.choice.machine.cores
        if cores >= len(os.sched_getaffinity(0)):
            return self.environment
        threads = cores // (self.choice.ranks if verb.name == TRAIN else 1)
        return {"OMP_NUM_THREADS": str(max(1, threads)), **self.environment}

    def _announce(self) -> None:
        kept = ", as at its first start" if self.is_resumed else ""
        expect = self.machine_class.expect.model_dump(exclude_none=True)
        scores = ", ".join(f"{name} at least {score:.2f}" for name, score in expect.items())
        left = sum(self._expected_seconds(verb) for verb in self.verbs)
        ranks = f"{self.choice.ranks} rank{'s' if self.choice.ranks > 1 else ''}"
        lines = [
            f"machine: {self.choice.machine.describe()}",
            f"{self.recipe.run.name}: variant {self.choice.machine_class}{kept}, {ranks}, {self.choice.precision};"
            f" about {duration(left)} with nothing else running",
            f"expect: {scores or 'no scores are known for this variant'} (0 is chance, 1 is perfect)",
            *([f"        {self.machine_class.pictures}"] if self.machine_class.pictures else []),
            f"logs: {self.recipe.run_folder.logs}/",
        ]
        print("\n".join(lines), file=self.out, flush=True)

    def describe(self, outcome: Outcome) -> str:
        """Returns what the demo ends with: time, scores, pages and what to try next."""
        verbs = ", ".join(f"{name} {duration(seconds)}" for name, seconds in outcome.seconds.items())
        expect, folder = self.machine_class.expect.model_dump(), self.recipe.run_folder
        lines = [f"done in {duration(60 * outcome.minutes)}: {verbs}", f"{'':<10}{'score':>6}  expected"]
        for name, score in outcome.scores.items():
            at_least = "-" if expect[name] is None else f"at least {expect[name]:.2f}"
            lines.append(f"{name:<10}{score:>6.2f}  {at_least}")
        if low := low_scores(outcome.scores, self.machine_class.expect):
            reason = reason_for_low_scores(self.recipe, outcome.training_cores, self.choice.machine.cores)
            follow = " The drawings do not follow their prompts as they should." if "drawings" in low else ""
            lines.append(f"lower than expected: {' and '.join(low)}.{follow} The likely reason: {reason}")
        pictures = ", ".join(str(path) for path in picture_folders(self.recipe))
        lines += [f"report: {folder.report}", f"pictures: {pictures}", "next:"]
        lines += [f"  {command}" for command in next_commands(self.recipe, self.request.program)]
        return "\n".join(lines)
