"""A run's status as lines of a terminal, and as plain values for JSON."""

import datetime
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pipelines.status.phase_status import RECENT_SECONDS, PhaseStatus
from pipelines.status.run_status import RunStatus

LABEL_WIDTH = 12
NAMED_REASONS = 3
"""Of samples that were left out, the commonest."""


def render(status: RunStatus) -> str:
    """The lines, each with its label."""
    return "\n".join(f"{label:{LABEL_WIDTH}}{text}" for label, text in _lines(status))


def _lines(status: RunStatus) -> Iterator[tuple[str, str]]:
    yield "run", status.run
    yield "state", status.state
    if diagnosis := status.diagnosis:
        yield "failure", diagnosis.failure
        yield "told by", diagnosis.line
        yield "what to do", diagnosis.advice
    if status.phase:
        yield from _phase_lines(status.phase)
    if status.restarts:
        yield "restarts", str(status.restarts)
    if len(status.phases) > 1:
        yield "phases", ", ".join(f"{phase.name} {_progress(phase)}" for phase in status.phases)
    for job in status.jobs:
        where = f" on {job.nodes}" if job.nodes else ""
        told = job.slurm or job.event
        yield "job", f"{job.job} ({job.phase or 'all phases'}) {told}, restart {job.restart}{where}; {job.reason}"
    for fault in status.faults:
        yield "look at", fault


def _phase_lines(phase: PhaseStatus) -> Iterator[tuple[str, str]]:
    yield "phase", f"{phase.name}, {_progress(phase)}"
    if phase.losses:
        yield "loss", ", ".join(f"{task} {loss:.4f}" for task, loss in phase.losses.items())
    if phase.tokens_per_s is not None:
        yield "speed", f"{phase.tokens_per_s:,.0f} tokens/s over the last {RECENT_SECONDS / 60:g} minutes of training"
    if phase.seconds_left is not None and not phase.finished:
        yield "time left", f"{_duration(phase.seconds_left)} of training for this phase"
    if phase.checkpoint_step is not None:
        yield "checkpoint", f"after step {phase.checkpoint_step}, {_duration(phase.checkpoint_age_seconds or 0)} old"
    else:
        yield "checkpoint", "none yet"
    if phase.left_out:
        reasons = list(phase.left_out.items())[:NAMED_REASONS]
        named = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        yield "left out", f"{sum(phase.left_out.values()):,} samples: {named}"


def _progress(phase: PhaseStatus) -> str:
    if phase.finished:
        return "finished"
    return f"step {phase.step:,} of {phase.steps:,}" if phase.steps else f"step {phase.step:,}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def as_values(status: RunStatus) -> dict[str, Any]:
    """The same for JSON."""
    return {**asdict(status), "restarts": status.restarts, "phase": status.phase.name if status.phase else None}
