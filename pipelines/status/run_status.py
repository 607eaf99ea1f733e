"""The state of a run: its phases, its Slurm jobs, and why it ended if it failed.

RUN/config.yaml -> phase_status.py for each phase;  RUN/slurm/ -> job_events.py;  failure files -> failure_class.py
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import ConfigDict

from pipelines.cluster.job_events import Jobs, JobStatus, ends_of_logs, read_jobs
from pipelines.recipe import Name
from pipelines.status.failure_class import Diagnosis, diagnose
from pipelines.status.failure_record import FailureRecord, read_records
from pipelines.status.phase_status import PhaseStatus, TrainSection, read_phase
from ufork.config import Config, read_mapping
from ufork.errors import ConfigError, FailureClass, StoppedError
from ufork.run_folder import RunFolder

SILENT_SECONDS = 600.0
"""Time after which a silent run is taken to have ended, without Slurm."""
ENDED_STATES = {
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
"""States of jobs that have ended: Slurm's, and FORGOTTEN for a job that Slurm no longer knows."""


class State(StrEnum):
    """State of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    RESUMING = "resuming"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped (resumable)"


@dataclass
class RunStatus:
    """Status of one run."""

    run: str
    state: State
    phases: list[PhaseStatus]
    jobs: list[JobStatus]
    diagnosis: Diagnosis | None = None
    """Reason for a failure, or for the end of the job that has just ended."""
    faults: list[str] = field(default_factory=list)
    """Files that are missing or damaged."""

    @property
    def phase(self) -> PhaseStatus | None:
        """The phase that is being trained, or the last one."""
        unfinished = (phase for phase in self.phases if not phase.finished)
        return next(unfinished, self.phases[-1] if self.phases else None)

    @property
    def restarts(self) -> int:
        """Number of restarts of training, as counted by the checkpoints or by Slurm."""
        starts = max((phase.starts - 1 for phase in self.phases), default=0)
        return max(0, starts, *(job.restart for job in self.jobs))


def read_status(run: Path, environment: Mapping[str, str], *, ended: int | None = None) -> RunStatus:
    """Returns what the folder `run`, and Slurm where there is one, report; damaged files become `faults`.

    Args:
        run: a run's folder.
        environment: PATH is searched for Slurm.
        ended: the exit code of the job that has just ended, if one has.

    Raises:
        ConfigError: there is no such folder.
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder; give the folder of a run")
    faults: list[str] = []
    phases = [read_phase(RunFolder(run).phase(name), train) for name, train in _trained(run, faults).items()]
    jobs = read_jobs(RunFolder(run), environment)
    records, damaged = read_records(_failure_files(RunFolder(run), jobs.newest))
    faults += [*(fault for phase in phases for fault in phase.faults), *jobs.faults, *damaged]
    if jobs.newest is None:
        records = _newer_than_last_sign(records, phases)
    state = _state(phases, jobs, records) if ended is None else _state_after(ended, phases, jobs)
    status = RunStatus(str(run), state, phases, jobs.jobs, faults=faults)
    if state is State.FAILED or ended is not None:
        job = jobs.newest
        code = ended if ended is not None else (job.exit_code if job else None)
        lines = ends_of_logs(RunFolder(run), job)
        status.diagnosis = diagnose(code, lines, records=records, slurm_state=job.slurm if job else "")
    return status


class _PhaseSection(Config):
    model_config = ConfigDict(extra="ignore")

    train: TrainSection = TrainSection()


class _RecordedConfig(Config):
    """The values of a run's config.yaml that the status needs."""

    model_config = ConfigDict(extra="ignore")

    phases: dict[Name, _PhaseSection] = {}


def _trained(run: Path, faults: list[str]) -> dict[str, TrainSection]:
    """Returns the `train` section of each phase, in order; without a config, of the phases that left a folder."""
    path = RunFolder(run).config
    try:
        phases = _RecordedConfig.from_mapping(read_mapping(path), origin=str(path)).phases
        return {name: phase.train for name, phase in phases.items()}
    except ConfigError as error:
        faults.append(str(error))
    except (ValueError, RecursionError) as error:  # YAML's own, of numbers and dates out of range and deep nesting
        faults.append(f"{path}: cannot be read ({error})")
    return {phase.path.name: TrainSection() for phase in RunFolder(run).phases()}


def _failure_files(run: RunFolder, job: JobStatus | None) -> list[Path]:
    return sorted((run.job_failures(job.job, job.restart) if job else run.failures).glob("*.json"))


def _newer_than_last_sign(records: Sequence[FailureRecord], phases: Sequence[PhaseStatus]) -> list[FailureRecord]:
    """Drops failures of earlier commands: the run has reported or saved since."""
    last_sign = _last_sign(phases)
    return [record for record in records if record.time >= last_sign]


def _last_sign(phases: Sequence[PhaseStatus]) -> float:
    return max((phase.last_sign or 0.0 for phase in phases), default=0.0)


def _state(phases: list[PhaseStatus], jobs: Jobs, records: Sequence[FailureRecord]) -> State:
    if phases and all(phase.finished for phase in phases):
        return State.FINISHED
    job = jobs.newest
    if job is None:
        return _state_by_files(phases, records)
    if job.event == "ended":
        return _state_after(job.exit_code, phases, jobs)
    if job.slurm in ENDED_STATES:  # without an event `ended`
        return State.STOPPED if job.slurm == "CANCELLED" else State.FAILED
    if job.event != "started" or job.slurm == "PENDING":
        return State.QUEUED
    return State.RESUMING if job.restart and _last_sign(phases) < job.time else State.RUNNING


def _state_after(exit_code: int | None, phases: list[PhaseStatus], jobs: Jobs) -> State:
    """Returns the state of a run whose job has ended; a job of a chain may end well before all phases are finished."""
    if exit_code == StoppedError.exit_code:
        return State.STOPPED
    if exit_code != 0:
        return State.FAILED
    if all(phase.finished for phase in phases):
        return State.FINISHED
    waiting = any(job.event == "submitted" and job.slurm not in ENDED_STATES for job in jobs.jobs)
    return State.QUEUED if waiting else State.STOPPED


def _state_by_files(phases: Sequence[PhaseStatus], records: Sequence[FailureRecord]) -> State:
    """Returns the state of a run without Slurm, from its failure files and from when it last reported."""
    if any(record.failure is not FailureClass.STOPPED for record in records):
        return State.FAILED
    if records:
        return State.STOPPED
    if not (last_sign := _last_sign(phases)):
        return State.QUEUED
    return State.RUNNING if time.time() - last_sign < SILENT_SECONDS else State.STOPPED
