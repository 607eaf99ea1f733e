"""Renders a run's status as lines for a terminal, and as plain values for JSON."""

import datetime
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pipelines.status.phase_status import RECENT_SECONDS, PhaseStatus
from pipelines.status.run_status import RunStatus
from pipelines.terminal import printable

LABEL_WIDTH = 12
SHOWN_REASONS = 3
"""Number of reasons shown for skipped samples, the most frequent first."""


def render(status: RunStatus) -> str:
    """Returns the lines, each with its label; control characters in names and messages are escaped."""
    return "\n".join(f"{label:{LABEL_WIDTH}}{printable(text)}" for label, text in _lines(status))


def _lines(status: RunStatus) -> Iterator[tuple[str, str]]:
    yield "run", status.run
    yield "state", status.state
    if diagnosis := status.diagnosis:
        yield "failure", diagnosis.failure
        if diagnosis.rank is not None:
            yield "on rank", str(diagnosis.rank)
        yield "shown by", diagnosis.line
        yield "what to do", diagnosis.advice
    if status.phase:
        yield from _phase_lines(status.phase)
    if status.restarts:
        yield "restarts", str(status.restarts)
    if len(status.phases) > 1:
        yield "phases", ", ".join(f"{phase.name} {_progress(phase)}" for phase in status.phases)
    for job in status.jobs:
        where = f" on {job.nodes}" if job.nodes else ""
        reason = f"; {job.reason}" if job.reason else ""
        state = job.slurm or job.event
        yield "job", f"{job.job} ({job.phase or 'all phases'}) {state}, restart {job.restart}{where}{reason}"
    for fault in status.faults:
        yield "damaged", fault


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
    if phase.skipped:
        reasons = list(phase.skipped.items())[:SHOWN_REASONS]
        counted = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        yield "skipped", f"{sum(phase.skipped.values()):,} samples: {counted}"


def _progress(phase: PhaseStatus) -> str:
    if phase.finished:
        return "finished"
    return f"step {phase.step:,} of {phase.steps:,}" if phase.steps else f"step {phase.step:,}"


def _duration(seconds: float) -> str:
    try:
        return str(datetime.timedelta(seconds=round(seconds)))
    except OverflowError:
        return f"{seconds:.0f} s"


def as_values(status: RunStatus) -> dict[str, Any]:
    """Returns the same as plain values, for JSON, which has no NaN and no infinity: they are None."""
    values = {**asdict(status), "restarts": status.restarts, "phase": status.phase.name if status.phase else None}
    return _finite(values)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
