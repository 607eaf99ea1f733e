"""What Slurm jobs have left of themselves in a run's folder, and what Slurm says of them.

RUN/slurm/jobs.jsonl (a line per event) -> the newest event of each job -> `scontrol show job` for those that go on
RUN/slurm/logs/JOB-RANK.log -> the ends of a job's logs
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.commands import NoAnswer, ask, has_program
from pipelines.doctor.finding import Surroundings
from ufork.run_folder import RunFolder

SLURM_SECONDS = 5.0
"""How long Slurm may take to tell of a job."""
TAIL_BYTES = 32_768
"""Of each log: an error and its traceback are at its end."""


@dataclass
class JobStatus:
    """One job of a run."""

    job: int
    event: str
    """The newest: submitted, started, requeued or ended."""
    phase: str | None = None
    restart: int = 0
    nodes: str = ""
    time: float = 0.0
    """Of the event, in seconds since 1970."""
    exit_code: int | None = None
    reason: str = ""
    slurm: str = ""
    """Slurm's word for its state; empty where it cannot be asked."""


@dataclass
class Jobs:
    """All of a run's, in the order of their submission."""

    jobs: list[JobStatus] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What cannot be read."""

    @property
    def newest(self) -> JobStatus | None:
        """The one of the newest event; those that only wait for others come after those that have begun."""
        return max(self.jobs, key=lambda job: (job.event != "submitted", job.time), default=None)


def read_jobs(run: Path, environment: Mapping[str, str]) -> Jobs:
    """The run's jobs; a run without Slurm has none."""
    path = RunFolder(run).jobs
    found: dict[int, JobStatus] = {}
    jobs = Jobs()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        lines, jobs.faults = [], [f"{path}: cannot be read ({error.strerror})"]
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            found[event["job"]] = _status(event)
        except (ValueError, KeyError, TypeError):
            jobs.faults.append(f"{path}: line {number} is no event of a job")
    jobs.jobs = list(found.values())
    _ask_slurm(jobs, environment)
    return jobs


def _status(event: dict[str, Any]) -> JobStatus:
    return JobStatus(
        job=int(event["job"]),
        event=str(event["event"]),
        phase=event.get("phase"),
        restart=int(event.get("restart") or 0),
        nodes=str(event.get("nodes") or ""),
        time=float(event["time"]),
        exit_code=event.get("exit_code"),
        reason=str(event.get("reason") or ""),
    )


def _ask_slurm(jobs: Jobs, environment: Mapping[str, str]) -> None:
    around = Surroundings(environment=environment, folder=Path(), home=Path(), timeout_seconds=SLURM_SECONDS)
    if not has_program("scontrol", around):
        return
    for job in jobs.jobs:
        try:
            told = ask(["scontrol", "--oneliner", "show", "job", str(job.job)], around)
        except NoAnswer as reason:
            if "Invalid job id" not in str(reason):
                jobs.faults.append(f"Slurm does not tell of job {job.job}: {reason}")
                return  # the next would take as long
            job.slurm = "FORGOTTEN"
            continue
        state = re.search(r"JobState=(\w+)", told)
        job.slurm = state[1] if state else ""


def ends_of_logs(run: Path, job: int | None = None) -> list[str]:
    """The last lines of the logs of `job`, or of all that there are, rank after rank."""
    lines: list[str] = []
    for path in sorted(RunFolder(run).job_logs.glob(f"{job if job is not None else '*'}-*.log")):
        try:
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                lines += file.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            continue
    return lines
