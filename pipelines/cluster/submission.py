"""A submission: what a job runs, kept in the run's folder, so that a job that begins again runs the same.

RUN/submissions/001/recipe.yaml    resolved
                    code/          ufork, pipelines, data_prep as they were
                    STAGE.sbatch   one job's script
RUN/slurm/jobs.jsonl               a line per event of a job; scripts append theirs
"""

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.cluster.slurm_job import JobRequest, render
from pipelines.recipe import Recipe
from ufork.errors import ClusterError
from ufork.files import storage_errors, write_whole
from ufork.run_folder import RunFolder

PACKAGES = ("ufork", "pipelines", "data_prep")
SOURCE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Submission:
    """The folder of one submission."""

    path: Path

    @classmethod
    def next_of(cls, run: Path) -> "Submission":
        """The one after those that `run` has; its folder is not made yet."""
        submissions = RunFolder(run).submissions
        numbers = [int(path.name) for path in submissions.glob("[0-9]*")]
        return cls(submissions / f"{max(numbers, default=0) + 1:03d}")

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def code(self) -> Path:
        """What the job imports."""
        return self.path / "code"

    def keep(self, recipe: Recipe) -> None:
        """Writes the recipe and the code.

        Raises:
            StorageError: the folder cannot be written.
        """
        with storage_errors(self.path):
            self.path.mkdir(parents=True)
            write_whole(self.recipe, recipe.to_yaml())
            for package in PACKAGES:
                shutil.copytree(SOURCE / package, self.code / package, ignore=shutil.ignore_patterns("__pycache__"))

    def submit(self, requests: Sequence[JobRequest], template: str) -> list[int]:
        """Hands one job per request to Slurm, each to begin when the one before has succeeded; their numbers.

        They are held until all are taken and told, so that what a job tells of itself comes after.

        Raises:
            ClusterError: Slurm does not take a job; those before it are cancelled.
        """
        jobs: list[int] = []
        for request in requests:
            script = self.path / f"{request.phase or 'train'}.sbatch"
            write_whole(script, render(request, template))
            after = ["--dependency", f"afterok:{jobs[-1]}", "--kill-on-invalid-dep=yes"] if jobs else []
            try:
                told = _slurm("sbatch", "--parsable", "--hold", *after, str(script))
            except ClusterError:
                for job in jobs:
                    _slurm("scancel", str(job))
                raise
            jobs.append(int(told.split(";")[0]))
            _tell_submitted(request, jobs[-1])
        _slurm("scontrol", "release", ",".join(map(str, jobs)))
        return jobs


def _tell_submitted(request: JobRequest, job: int) -> None:
    run = RunFolder(request.run)
    run.job_logs.mkdir(parents=True, exist_ok=True)  # Slurm makes none for a job's output
    event = {"event": "submitted", "job": job, "phase": request.phase, "restart": 0, "nodes": ""}
    with open(run.jobs, "a", encoding="utf-8") as file:
        file.write(json.dumps({**event, "time": int(time.time()), "exit_code": None, "reason": ""}) + "\n")


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ClusterError(
            f"no {command[0]} here: submit on a login node of a Slurm cluster, or see the script by --dry-run"
        ) from None
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}; change what Slurm names, and submit again")
    return done.stdout.strip()
