"""Reads what Slurm jobs recorded in a run's folder, and asks Slurm for their state.

RUN/slurm/jobs.jsonl (one line per event) -> the newest event of each job -> `scontrol show job`
RUN/slurm/logs/JOB-RANK.log               -> the end of each of a job's logs
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ConfigDict, Field

from pipelines.commands import NoAnswer, Reason, ask
from ufork.config import Config
from ufork.errors import ConfigError
from ufork.files import read_bounded
from ufork.run_folder import RunFolder

SLURM_SECONDS = 60.0
"""Time limit of a question to Slurm, whose controller may be busy."""
MAX_EVENTS_BYTES = 2**26
TAIL_BYTES = 32_768
"""Bytes read from each log: an error and its traceback are at the end."""
START_MARK = "== restart "
"""Beginning of the first line that each start of a job writes into its logs."""


class JobEvent(Config):
    """One line of jobs.jsonl."""

    model_config = ConfigDict(extra="ignore")

    job: int
    event: str
    """submitted, started, requeued or ended."""
    time: float = Field(allow_inf_nan=False)
    """Seconds since 1970."""
    phase: str | None = None
    restart: int = 0
    nodes: str = ""
    exit_code: int | None = None
    reason: str = ""


@dataclass
class JobStatus:
    """One job of a run: its newest event, and what Slurm says."""

    job: int
    event: str
    phase: str | None
    restart: int
    nodes: str
    time: float
    """Time of the event, in seconds since 1970."""
    exit_code: int | None
    reason: str
    slurm: str = ""
    """Slurm's name for its state; empty where Slurm cannot be asked."""


@dataclass
class Jobs:
    """All jobs of a run, in the order of submission."""

    jobs: list[JobStatus] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Files and lines that cannot be read."""

    @property
    def newest(self) -> JobStatus | None:
        """The job with the newest event; jobs that have started come before those that are only submitted."""
        return max(self.jobs, key=lambda job: (job.event != "submitted", job.time), default=None)


def read_jobs(run: RunFolder, environment: Mapping[str, str]) -> Jobs:
    """Returns the jobs of a run; a run without Slurm has none."""
    path = run.jobs
    found: dict[int, JobStatus] = {}
    jobs = Jobs()
    try:
        lines = read_bounded(path, MAX_EVENTS_BYTES).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        lines = []
    except OSError as error:
        lines, jobs.faults = [], [f"{path}: cannot be read ({error.strerror})"]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = JobEvent.from_mapping(json.loads(line), origin=str(path))
            found[event.job] = JobStatus(**event.model_dump())
        except (ValueError, RecursionError, ConfigError):
            jobs.faults.append(f"{path}: line {number} is not an event of a job")
    jobs.jobs = list(found.values())
    _ask_slurm(jobs, environment)
    return jobs


def _ask_slurm(jobs: Jobs, environment: Mapping[str, str]) -> None:
    for job in jobs.jobs:
        command = ["scontrol", "--oneliner", "show", "job", str(job.job)]
        try:
            shown = ask(command, environment=environment, timeout_seconds=SLURM_SECONDS)
        except NoAnswer as answer:
            if answer.reason is Reason.MISSING:
                return
            if "Invalid job id" not in str(answer):
                jobs.faults.append(f"Slurm does not report job {job.job}: {answer}")
                return  # the next would take as long
            job.slurm = "FORGOTTEN"
            continue
        state = re.search(r"JobState=(\w+)", shown)
        job.slurm = state[1] if state else ""


def ends_of_logs(run: RunFolder, job: JobStatus | None = None) -> list[str]:
    """Returns the last lines of the newest start in the logs of `job`, rank after rank; without a job, of all logs."""
    patterns = [f"{job.job}.log", f"{job.job}-*.log"] if job else ["*.log"]
    lines: list[str] = []
    for path in (path for pattern in patterns for path in sorted(run.job_logs.glob(pattern))):
        try:
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                lines += _newest_start(file.read().decode("utf-8", errors="replace").splitlines())
        except OSError:
            continue
    return lines


def _newest_start(lines: list[str]) -> list[str]:
    starts = [number for number, line in enumerate(lines) if line.startswith(START_MARK)]
    return lines[starts[-1] :] if starts else lines
