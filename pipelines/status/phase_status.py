"""How far one phase of a run is, by the files that it leaves.

config.yaml (steps) + metrics.jsonl + checkpoints/ + skipped_samples/ + weights/ -> StageStatus
"""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ufork.checkpoint.folder import CheckpointFolder
from ufork.checkpoint.state import STATE_FILE, verify
from ufork.errors import CheckpointError
from ufork.model.weights import WEIGHTS_NAME
from ufork.report.metrics import read_metrics
from ufork.run_folder import PhaseFolder

RECENT_SECONDS = 300.0
"""Over which speed is told."""


@dataclass(kw_only=True)
class PhaseStatus:
    """One phase; what is None is not known."""

    name: str
    steps: int | None
    """All that it takes."""
    step: int = 0
    finished: bool = False
    starts: int = 0
    """Jobs or commands that have trained it."""
    last_sign: float | None = None
    """When it last reported or saved, in seconds since 1970."""
    losses: dict[str, float] = field(default_factory=dict)
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    checkpoint_step: int | None = None
    checkpoint_age_seconds: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    """Samples, by why."""
    faults: list[str] = field(default_factory=list)
    """Files that are damaged."""


def read_phase(phase: PhaseFolder, train: dict[str, Any]) -> PhaseStatus:
    """Reads the files of `phase`; `train` is its section of the run's config."""
    status = PhaseStatus(name=phase.path.name, steps=train.get("steps"))
    _read_metrics(status, phase.metrics, train.get("limit_seconds"))
    _read_checkpoints(status, CheckpointFolder(phase.checkpoints))
    _read_skipped_samples(status, phase.skipped_samples)
    weights, metrics = phase.weights / WEIGHTS_NAME, phase.metrics
    status.finished = weights.exists() and (not metrics.exists() or _changed(weights) >= _changed(metrics))
    return status


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _read_metrics(status: PhaseStatus, path: Path, limit_seconds: float | None) -> None:
    if not path.exists():
        return
    metrics = read_metrics(path)
    status.last_sign = _changed(path)
    if metrics.fault:
        status.faults.append(metrics.fault)
    reports = [report for report in metrics.entries if {"step", "seconds", "tokens_per_s"} <= report.keys()]
    if not reports:
        return
    last = reports[-1]
    status.step = last["step"]
    status.losses = {key.removeprefix("loss/"): last[key] for key in last if key.startswith("loss/")}
    recent = [each for each in reports if last["seconds"] - each["seconds"] <= RECENT_SECONDS]
    _read_speed(status, recent, limit_seconds)


def _read_speed(status: PhaseStatus, recent: list[dict[str, Any]], limit_seconds: float | None) -> None:
    """Each report's figures are of the time since the one before it."""
    first, last = recent[0], recent[-1]
    spans = [later["seconds"] - earlier["seconds"] for earlier, later in zip(recent, recent[1:], strict=False)]
    if sum(spans) <= 0:
        status.tokens_per_s = last["tokens_per_s"]
        return
    rates = [report["tokens_per_s"] for report in recent[1:]]
    status.tokens_per_s = sum(rate * span for rate, span in zip(rates, spans, strict=True)) / sum(spans)
    if status.steps and last["step"] > first["step"]:
        per_step = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
        status.seconds_left = max(0.0, (status.steps - last["step"]) * per_step)
        if limit_seconds is not None:
            status.seconds_left = min(status.seconds_left, max(0.0, limit_seconds - last["seconds"]))


def _read_checkpoints(status: PhaseStatus, folder: CheckpointFolder) -> None:
    for step in reversed(folder.steps()):
        try:
            verify(folder.at(step), deep=False)
        except CheckpointError as error:
            status.faults.append(str(error))
            continue
        saved = _changed(folder.at(step) / STATE_FILE)
        status.checkpoint_step, status.checkpoint_age_seconds = step, time.time() - saved
        status.last_sign = max(status.last_sign or 0.0, saved)
        break
    status.starts = folder.num_starts()


def _read_skipped_samples(status: PhaseStatus, folder: Path) -> None:
    reasons: Counter[str] = Counter()
    for path in sorted(folder.glob("replica-*.jsonl")):
        samples, damaged = _json_lines(path)
        reasons.update(str(sample.get("reason")) for sample in samples)
        if damaged:
            status.faults.append(f"{path}: {damaged} lines are damaged")
    status.left_out = dict(reasons.most_common())


def _json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The mappings of a file of JSON lines, and how many of its whole lines are none."""
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1].splitlines()
    found = []
    for line in whole:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found, len(whole) - len(found)
