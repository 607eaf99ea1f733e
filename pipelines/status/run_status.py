"""What state a run is in: its phases, its Slurm jobs, and why it ended where it failed.

RUN/config.yaml -> phase_status.py for each phase;  RUN/slurm/ -> job_events.py, failure_class.py
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipelines.cluster.job_events import Jobs, JobStatus, ends_of_logs, read_jobs
from pipelines.status.failure_class import Diagnosis, diagnose
from pipelines.status.phase_status import PhaseStatus, read_phase
from ufork.config import read_mapping
from ufork.errors import ConfigError, StoppedError, UforkError
from ufork.run_folder import RunFolder

SILENT_SECONDS = 600.0
"""After which a run that nobody else tells of is taken to have ended."""
OVER = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "FORGOTTEN",
}
"""Slurm's words, and ours, for jobs that do not go on."""


class State(StrEnum):
    """Of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    RESUMING = "resuming"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped: resume me"


@dataclass
class RunStatus:
    """One run."""

    run: str
    state: State
    phases: list[PhaseStatus]
    jobs: list[JobStatus]
    diagnosis: Diagnosis | None = None
    """Where it failed, or of the job that has just ended."""
    faults: list[str] = field(default_factory=list)
    """What is missing or damaged."""

    @property
    def phase(self) -> PhaseStatus | None:
        """The one that is trained, or the last."""
        unfinished = (phase for phase in self.phases if not phase.finished)
        return next(unfinished, self.phases[-1] if self.phases else None)

    @property
    def restarts(self) -> int:
        """How often training was begun again, by the phase's checkpoints or by Slurm's count."""
        starts = max((phase.starts - 1 for phase in self.phases), default=0)
        return max(0, starts, *(job.restart for job in self.jobs))


def read_status(run: Path, environment: Mapping[str, str], *, ended: int | None = None) -> RunStatus:
    """What the folder `run`, and Slurm where it is, tell; damaged files are told, not raised.

    Args:
        run: a run's folder.
        environment: PATH is searched for Slurm.
        ended: the exit code of the job that has just ended, where one has.

    Raises:
        ConfigError: there is no such folder.
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder; give that of a run")
    faults: list[str] = []
    phases = [_phase(run, name, train, faults) for name, train in _trained(run, faults).items()]
    jobs = read_jobs(run, environment)
    state = _state(phases, jobs) if ended is None else _state_after(ended, phases, jobs)
    status = RunStatus(str(run), state, phases, jobs.jobs, faults=faults + jobs.faults)
    if state is State.FAILED or ended is not None:
        job = jobs.newest
        code = ended if ended is not None else (job.exit_code if job else None)
        lines = ends_of_logs(run, job.job if job else None)
        status.diagnosis = diagnose(code, lines, slurm_state=job.slurm if job else "")
    return status


def _trained(run: Path, faults: list[str]) -> dict[str, dict[str, Any]]:
    """The `train` section of each phase, in order; without a config, of those that have left a folder."""
    try:
        phases = read_mapping(RunFolder(run).config).get("phases", {})
        return {name: phase["train"] for name, phase in phases.items()}
    except (ConfigError, AttributeError, KeyError, TypeError) as error:
        faults.append(str(error) if isinstance(error, ConfigError) else f"{RunFolder(run).config}: names no phases")
        return {phase.path.name: {} for phase in RunFolder(run).phases()}


def _phase(run: Path, name: str, train: dict[str, Any], faults: list[str]) -> PhaseStatus:
    try:
        phase = read_phase(RunFolder(run).phase(name), train)
    except (UforkError, OSError, ValueError, TypeError) as error:
        phase = PhaseStatus(name=name, steps=train.get("steps"), faults=[f"phase {name}: {error}"])
    faults += phase.faults
    return phase


def _state(phases: list[PhaseStatus], jobs: Jobs) -> State:
    if phases and all(phase.finished for phase in phases):
        return State.FINISHED
    job = jobs.newest
    if job is None:
        return _state_by_files(phases)
    if job.event == "ended":
        return _state_after(job.exit_code, phases, jobs)
    if job.slurm in OVER:  # it ended without telling so itself
        return State.STOPPED if job.slurm == "CANCELLED" else State.FAILED
    if job.event != "started" or job.slurm == "PENDING":
        return State.QUEUED
    last_sign = max((phase.last_sign or 0.0 for phase in phases), default=0.0)
    return State.RESUMING if job.restart and last_sign < job.time else State.RUNNING


def _state_after(exit_code: int | None, phases: list[PhaseStatus], jobs: Jobs) -> State:
    """Of a run whose job has ended; one of a chain ends well before all phases are finished."""
    if exit_code == StoppedError.exit_code:
        return State.STOPPED
    if exit_code != 0:
        return State.FAILED
    if all(phase.finished for phase in phases):
        return State.FINISHED
    waiting = any(job.event == "submitted" and job.slurm not in OVER for job in jobs.jobs)
    return State.QUEUED if waiting else State.STOPPED


def _state_by_files(phases: list[PhaseStatus]) -> State:
    """Without Slurm nobody tells of an end: what has not reported for long is not running."""
    signs = [phase.last_sign for phase in phases if phase.last_sign]
    if not signs:
        return State.QUEUED
    return State.RUNNING if time.time() - max(signs) < SILENT_SECONDS else State.STOPPED
