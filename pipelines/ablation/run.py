"""Runs the trials of a suite that have no result yet, several at a time.

Suite, result files -> shards and tokenizers -> per trial `ufork train` and `ufork evaluate` in processes of their own
                    -> RESULTS/ARM-seedN.json as each is done

Interrupted or killed, the same command resumes: results are kept, and unfinished trials resume from their checkpoints.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

from pipelines.ablation.origin import SOURCE, commit_of, machine_of
from pipelines.ablation.outcome import result_of, shortened
from pipelines.ablation.shared_data import link_data, prepare_data
from pipelines.ablation.suite import Suite, Trial, recipe_differences
from pipelines.cgroups import usable_cores
from pipelines.launch.stop_signals import handled
from pipelines.launch.verb_process import VerbFailedError, VerbProcess, verb_command
from ufork.config import read_mapping
from ufork.errors import ConfigError, StoppedError, UforkError
from ufork.files import write_whole
from ufork.run_folder import RunFolder

STOPPED = "stopped; the same command resumes the suite"


class TrialsFailedError(UforkError):
    """Some trials of a suite failed; the exit code is that of the first."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class SuiteRun:
    """One start of a suite."""

    def __init__(
        self, suite: Suite, *, results: Path, parallel: int, environment: Mapping[str, str], out: TextIO
    ) -> None:
        """Takes what to run.

        Args:
            suite: the suite.
            results: folder of the result files.
            parallel: trials that run at the same time.
            environment: of the verbs.
            out: receives a line for each verb that starts and each trial that ends.
        """
        self.suite, self.results, self.parallel, self.environment, self.out = suite, results, parallel, environment, out
        self._stopping = threading.Event()

    def prepare(self) -> None:
        """Makes shards and tokenizers; raises as `prepare_data`, and StoppedError after a stop signal."""
        self._with_signals([self._prepare])

    def run(self, trials: Sequence[Trial]) -> None:
        """Runs `trials`; one that fails does not keep the others from running.

        Raises:
            TrialsFailedError: some failed; the message has their errors.
            StoppedError: a signal asked to stop; unfinished trials have saved their state.
            KeyboardInterrupt: Ctrl-C; likewise.
        """
        commit, machine = commit_of(SOURCE, self.environment), machine_of(self.environment)
        failed: list[UforkError] = []

        def run(trial: Trial) -> None:
            try:
                self._run_trial(trial, commit=commit, machine=machine)
            except StoppedError:
                raise
            except UforkError as error:
                self._say(f"{trial.name}: failed")
                failed.append(error)

        self._with_signals([partial(run, trial) for trial in trials])
        if failed:
            errors = "\n".join(map(str, failed))
            raise TrialsFailedError(f"{len(failed)} of {len(trials)} trials failed\n{errors}", failed[0].exit_code)

    def _with_signals(self, works: Sequence[Callable[[], None]]) -> None:
        """Does `works` in threads; a stop signal or Ctrl-C stops them and the verbs that they wait for."""
        with handled(self._stop), ThreadPoolExecutor(self.parallel) as pool:
            futures: list[Future[None]] = [pool.submit(work) for work in works]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stopping.set()
                raise

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()

    def _watch(self, seconds: float) -> None:
        if self._stopping.is_set():
            raise StoppedError(STOPPED)

    def _prepare(self) -> None:
        prepare_data(self.suite, self._run_verb)

    def _run_trial(self, trial: Trial, *, commit: str, machine: str) -> None:
        run = trial.recipe.run_folder
        link_data(self.suite, run)
        _keep_recipe(trial)
        self._run_verb(run, "train", "--ranks", str(self.suite.config.ranks))
        self._run_verb(run, "evaluate")
        result = result_of(self.suite, trial, commit=commit, machine=machine)
        path = result.save(self.results)
        scores = ", ".join(f"{score.name} {score.value:.3f}" for score in result.scores)
        self._say(f"{trial.name}: {scores}; {path}")

    def _run_verb(self, run: RunFolder, verb: str, *options: str) -> None:
        self._watch(0)
        self._say(f"{run.path.name}: {verb}")
        command = verb_command([*verb.split(), *options, str(run.recipe)])
        log = run.logs / f"{verb.replace(' ', '-')}.log"
        process = VerbProcess(f"{run.path.name}: {verb}", command, log, self._environment_of(verb))
        try:
            process.run(self._watch)
        except VerbFailedError:
            self._watch(0)  # a scheduler signals the verb, too
            raise

    def _environment_of(self, verb: str) -> Mapping[str, str]:
        """Returns the environment of a verb: trials that run at the same time share the cores."""
        cores = usable_cores()
        if self.parallel == 1 and cores >= len(os.sched_getaffinity(0)):
            return self.environment
        ranks = self.suite.config.ranks if verb == "train" else 1
        return {"OMP_NUM_THREADS": str(max(1, cores // (self.parallel * ranks))), **self.environment}

    def _say(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def _keep_recipe(trial: Trial) -> None:
    """Writes the recipe into the run folder of a trial.

    Raises:
        ConfigError: the folder is that of another recipe.
    """
    run = trial.recipe.run_folder
    if run.recipe.exists():
        found = recipe_differences(read_mapping(run.recipe), trial.recipe, origin=str(run.recipe))
        if found:
            raise ConfigError(
                f"{run.path}: was begun with another recipe than the suite now has: {shortened(found)}; restore the"
                " suite, or remove this folder to run the trial again"
            )
    write_whole(run.recipe, trial.recipe.to_yaml(), durable=True)
