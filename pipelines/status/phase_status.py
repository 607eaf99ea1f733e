"""Progress of one phase of a run, read from the files that it writes.

config.yaml (steps) + metrics.jsonl + checkpoints/ + skipped_samples/ + weights/ -> PhaseStatus
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt

from ufork.checkpoint.folder import CheckpointFolder
from ufork.checkpoint.state import STATE_FILE, verify
from ufork.config import Config
from ufork.errors import CheckpointError, ConfigError
from ufork.model.weights import WEIGHTS_NAME
from ufork.report.metrics import read_metrics
from ufork.run_folder import PhaseFolder

RECENT_SECONDS = 300.0
"""Training time over which the speed is averaged."""
MAX_REPORTS = 10_000
"""Most reports over which it is averaged."""


class TrainSection(Config):
    """The values of a phase's `train` section that the status needs."""

    model_config = ConfigDict(extra="ignore")

    steps: NonNegativeInt | None = None
    limit_seconds: FiniteFloat | None = Field(default=None, ge=0)


class _Report(Config):
    """One line of metrics.jsonl."""

    model_config = ConfigDict(extra="allow")

    step: NonNegativeInt
    seconds: FiniteFloat = Field(ge=0, le=1e12)
    tokens_per_s: FiniteFloat = Field(ge=0, le=1e15)

    @property
    def losses(self) -> dict[str, float]:
        """Losses by task."""
        extra = self.model_extra or {}
        return {
            key.removeprefix("loss/"): float(value)
            for key, value in extra.items()
            if key.startswith("loss/") and (isinstance(value, float) or type(value) is int and abs(value) < 2**63)
        }


@dataclass(kw_only=True)
class PhaseStatus:
    """Status of one phase; None means unknown."""

    name: str
    steps: int | None
    """Number of steps of the whole phase."""
    step: int = 0
    finished: bool = False
    starts: int = 0
    """Number of jobs or commands that have trained the phase."""
    last_sign: float | None = None
    """Time of the last report or save, in seconds since 1970."""
    losses: dict[str, float] = field(default_factory=dict)
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    checkpoint_step: int | None = None
    checkpoint_age_seconds: float | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of skipped samples, by reason."""
    faults: list[str] = field(default_factory=list)
    """Files that are damaged."""


def read_phase(phase: PhaseFolder, train: TrainSection) -> PhaseStatus:
    """Returns the status of a phase; a damaged file is one of its `faults`, and the others are read."""
    status = PhaseStatus(name=phase.path.name, steps=train.steps)
    metrics, checkpoints, skipped = phase.metrics, phase.checkpoints, phase.skipped_samples
    weights = phase.weights / WEIGHTS_NAME
    _guarded(status, metrics, lambda: _read_metrics(status, metrics, train.limit_seconds))
    _guarded(status, checkpoints, lambda: _read_checkpoints(status, CheckpointFolder(checkpoints)))
    _guarded(status, skipped, lambda: _read_skipped_samples(status, skipped))
    _guarded(status, weights, lambda: _read_finished(status, weights, metrics))
    return status


def _guarded(status: PhaseStatus, path: Path, read: Callable[[], None]) -> None:
    try:
        read()
    except Exception as error:  # damage comes in any form, and the status is asked for when something is broken
        status.faults.append(f"{path}: cannot be read ({type(error).__name__}: {error})")


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _read_finished(status: PhaseStatus, weights: Path, metrics: Path) -> None:
    status.finished = weights.is_file() and (not metrics.is_file() or _changed(weights) >= _changed(metrics))


def _read_metrics(status: PhaseStatus, path: Path, limit_seconds: float | None) -> None:
    if not path.exists():
        return
    metrics = read_metrics(path)
    status.last_sign = _changed(path)
    if metrics.fault:
        status.faults.append(metrics.fault)
    recent: list[_Report] = []
    for report in islice(_newest_first(metrics.entries, origin=str(path)), MAX_REPORTS):
        if recent and recent[0].seconds - report.seconds > RECENT_SECONDS:
            break
        recent.append(report)
    if not recent:
        return
    status.step, status.losses = recent[0].step, recent[0].losses
    recent.reverse()
    _read_speed(status, recent, limit_seconds)


def _newest_first(entries: list[dict[str, Any]], *, origin: str) -> Iterator[_Report]:
    for entry in reversed(entries):
        with suppress(ConfigError):  # a line of another kind
            yield _Report.from_mapping(entry, origin=origin)


def _read_speed(status: PhaseStatus, recent: list[_Report], limit_seconds: float | None) -> None:
    """Averages over the reports, each of which covers the time since the one before it."""
    first, last = recent[0], recent[-1]
    spans = [later.seconds - earlier.seconds for earlier, later in zip(recent, recent[1:], strict=False)]
    if sum(spans) <= 0:
        status.tokens_per_s = last.tokens_per_s
        return
    rates = [report.tokens_per_s for report in recent[1:]]
    status.tokens_per_s = sum(rate * span for rate, span in zip(rates, spans, strict=True)) / sum(spans)
    if status.steps and last.step > first.step:
        per_step = (last.seconds - first.seconds) / (last.step - first.step)
        status.seconds_left = max(0.0, (status.steps - last.step) * per_step)
        if limit_seconds is not None:
            status.seconds_left = min(status.seconds_left, max(0.0, limit_seconds - last.seconds))


def _read_checkpoints(status: PhaseStatus, folder: CheckpointFolder) -> None:
    for step in reversed(folder.steps()):
        try:
            verify(folder.at(step), deep=False)
        except CheckpointError as error:
            status.faults.append(str(error))
            continue
        saved = _changed(folder.at(step) / STATE_FILE)
        status.checkpoint_step, status.checkpoint_age_seconds = step, max(0.0, time.time() - saved)
        status.last_sign = max(status.last_sign or 0.0, saved)
        break
    status.starts = folder.num_starts()


def _read_skipped_samples(status: PhaseStatus, folder: Path) -> None:
    reasons: Counter[str] = Counter()
    for path in sorted(folder.glob("replica-*.jsonl")):
        reasons.update(str(sample.get("reason")) for sample in _json_lines(status, path))
    status.skipped = dict(reasons.most_common())


def _json_lines(status: PhaseStatus, path: Path) -> list[dict[str, Any]]:
    """Returns the mappings in a file of JSON lines; a last line without its end is still being written."""
    if not path.is_file():
        if path.exists():
            status.faults.append(f"{path}: is not a regular file")
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1].splitlines()
    found = []
    for line in whole:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    if damaged := len(whole) - len(found):
        status.faults.append(f"{path}: {damaged} damaged lines")
    return found
