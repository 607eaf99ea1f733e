"""A run's status as lines of a terminal, and as plain values for JSON."""

import datetime
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pipelines.status.phase_status import RECENT_SECONDS, StageStatus
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
    if status.stage:
        yield from _stage_lines(status.stage)
    if status.restarts:
        yield "restarts", str(status.restarts)
    if len(status.stages) > 1:
        yield "stages", ", ".join(f"{stage.name} {_progress(stage)}" for stage in status.stages)
    for job in status.jobs:
        where = f" on {job.nodes}" if job.nodes else ""
        told = job.slurm or job.event
        yield "job", f"{job.job} ({job.stage or 'all stages'}) {told}, restart {job.restart}{where}; {job.reason}"
    for fault in status.faults:
        yield "look at", fault


def _stage_lines(stage: StageStatus) -> Iterator[tuple[str, str]]:
    yield "stage", f"{stage.name}, {_progress(stage)}"
    if stage.losses:
        yield "loss", ", ".join(f"{task} {loss:.4f}" for task, loss in stage.losses.items())
    if stage.tokens_per_s is not None:
        yield "speed", f"{stage.tokens_per_s:,.0f} tokens/s over the last {RECENT_SECONDS / 60:g} minutes of training"
    if stage.seconds_left is not None and not stage.finished:
        yield "time left", f"{_duration(stage.seconds_left)} of training for this stage"
    if stage.checkpoint_step is not None:
        yield "checkpoint", f"after step {stage.checkpoint_step}, {_duration(stage.checkpoint_age_seconds or 0)} old"
    else:
        yield "checkpoint", "none yet"
    if stage.left_out:
        reasons = list(stage.left_out.items())[:NAMED_REASONS]
        named = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        yield "left out", f"{sum(stage.left_out.values()):,} samples: {named}"


def _progress(stage: StageStatus) -> str:
    if stage.finished:
        return "finished"
    return f"step {stage.step:,} of {stage.steps:,}" if stage.steps else f"step {stage.step:,}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def as_values(status: RunStatus) -> dict[str, Any]:
    """The same for JSON."""
    return {**asdict(status), "restarts": status.restarts, "stage": status.stage.name if status.stage else None}
