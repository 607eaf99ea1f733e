"""A submission: what a job runs, kept in the run's folder, so that every start of the job runs the same.

RUN/submissions/001/recipe.yaml    resolved
                    code/          ufork, pipelines and data_prep as they were
                    PHASE.sbatch   the script of one job
RUN/slurm/jobs.jsonl               one line per event of a job; the batch scripts append theirs
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.cluster.slurm_job import JobRequest, render
from pipelines.commands import NoAnswer, Reason, ask
from pipelines.recipe import Recipe
from ufork.errors import ClusterError
from ufork.files import storage_errors, write_whole
from ufork.run_folder import RunFolder

PACKAGES = ("ufork", "pipelines", "data_prep")
SOURCE = Path(__file__).parents[2]
SLURM_SECONDS = 300.0
"""Time limit of one of Slurm's commands; a busy controller takes minutes."""
_ANOTHER_FOLDER = "another run.folder"


@dataclass(frozen=True)
class Submission:
    """The folder of one submission."""

    path: Path

    @classmethod
    def next_of(cls, run: Path) -> "Submission":
        """Returns the one after those that the run has; does not create its folder."""
        folder = RunFolder(run).submissions
        numbers = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()]
        return cls(folder / f"{max(numbers, default=0) + 1:03d}")

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def code(self) -> Path:
        """The code that the job imports."""
        return self.path / "code"

    def keep(self, recipe: Recipe) -> None:
        """Writes the recipe and the code.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.keep_code()
        write_whole(self.recipe, recipe.to_yaml(), choose=_ANOTHER_FOLDER)

    def keep_code(self) -> None:
        """Copies the code into the new folder; raises as `keep`."""
        with storage_errors(self.path, choose=_ANOTHER_FOLDER):
            self.path.mkdir(parents=True)
            for package in PACKAGES:
                shutil.copytree(SOURCE / package, self.code / package, ignore=shutil.ignore_patterns("__pycache__"))

    def submit(self, requests: Sequence[JobRequest], template: str, environment: Mapping[str, str]) -> list[int]:
        """Submits one job per request, each to start when the one before it has succeeded; returns their numbers.

        `environment` is that of Slurm's commands, and so of the jobs.

        Jobs are held until all are submitted and recorded, so that no job records an event before that.

        Raises:
            ClusterError: Slurm refuses a job; those before it are cancelled.
        """
        slurm = partial(ask_slurm, environment)
        jobs: list[int] = []
        for request in requests:
            script = self.path / f"{request.phase or 'train'}.sbatch"
            write_whole(script, render(request, template))
            after = ["--dependency", f"afterok:{jobs[-1]}", "--kill-on-invalid-dep=yes"] if jobs else []
            try:
                printed = slurm("sbatch", "--parsable", "--hold", *after, str(script))
            except ClusterError:
                for job in jobs:
                    slurm("scancel", str(job))
                raise
            jobs.append(int(printed.split(";")[0]))
            _record_submitted(request, jobs[-1])
        slurm("scontrol", "release", ",".join(map(str, jobs)))
        return jobs


def _record_submitted(request: JobRequest, job: int) -> None:
    run = RunFolder(request.run)
    run.job_logs.mkdir(parents=True, exist_ok=True)  # Slurm does not create the folder of a job's output
    event = {"event": "submitted", "job": job, "phase": request.phase, "restart": 0, "nodes": ""}
    with open(run.jobs, "a", encoding="utf-8") as file:
        file.write(json.dumps({**event, "time": int(time.time()), "exit_code": None, "reason": ""}) + "\n")


def ask_slurm(environment: Mapping[str, str], *command: str) -> str:
    """Runs one of Slurm's commands and returns what it prints.

    Raises:
        ClusterError: Slurm is not here, or refuses.
    """
    try:
        return ask(command, environment=environment, timeout_seconds=SLURM_SECONDS)
    except NoAnswer as answer:
        if answer.reason is Reason.MISSING:
            remedy = "submit from a login node of a Slurm cluster, or print the script with --dry-run"
            raise ClusterError(f"no {command[0]} on the PATH: {remedy}") from None
        raise ClusterError(
            f"{' '.join(command)}: {answer.output or answer}; fix what Slurm names, and submit again"
        ) from None
