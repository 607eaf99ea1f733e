"""Reading what a run has left in its folder, for its report.

    RUN/{config.yaml, versions.json, evaluation.json, evaluation/*.png, shards/ATTRIBUTION.md}
    RUN/phases/NAME/{metrics.jsonl, drawings/step-*.png, pipeline.png, bubble.json}             -> RunRecord

A run may be unfinished or killed at any time: what is missing is empty here, damaged lines are skipped.
"""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ufork.data.shards.writer import ATTRIBUTION_FILE
from ufork.errors import UforkError
from ufork.parallel.tracing.step_trace import BUBBLE_FILE, PICTURE_FILE
from ufork.report.metrics import read_metrics
from ufork.run_folder import PhaseFolder, RunFolder

log = logging.getLogger(__name__)

Metrics = dict[str, float]
"""One line of metrics.jsonl: numbers by name; values that are not finite numbers are dropped."""


class ReportError(UforkError):
    """A run's folder is missing, empty or holds a file that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """One phase's curves and drawings."""

    name: str
    metrics: list[Metrics]
    drawings: list[tuple[int, Path]]
    """(step, grid of drawings), in order."""
    pipeline: Path | None
    """Picture of a traced step."""
    bubble: dict[str, float]
    """Idle share of each pipeline phase in that step."""

    @property
    def steps(self) -> int:
        """The last step that was logged; 0 when none was."""
        return int(self.metrics[-1].get("step", 0)) if self.metrics else 0

    @property
    def seconds(self) -> float:
        """The time at the last logged step."""
        return self.metrics[-1].get("seconds", 0.0) if self.metrics else 0.0


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that a report shows."""

    name: str
    folder: Path
    config: str
    """YAML; empty when there is none."""
    versions: dict[str, str]
    phases: list[PhaseRecord]
    """In the order of the config, others after them by name."""
    evaluation: dict[str, Any] | None
    attribution: str


def read_run(folder: Path) -> RunRecord:
    """Reads the folder of a run.

    Raises:
        ReportError: `folder` is no run's, or a file in it is damaged.
    """
    run = RunFolder(folder)
    if not run.config.is_file() and not run.phases():
        raise ReportError(f"{folder}: neither config.yaml nor phases/ is there; give the folder of a run")
    text = _read_text(run.config)
    try:
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ReportError(f"{run.config}: not valid YAML: {error}") from None
    versions = _read_json(run.versions) or {}
    return RunRecord(
        name=(config.get("run") or {}).get("name") or folder.resolve().name,
        folder=folder,
        config=text,
        versions={name: str(version) for name, version in versions.items()},
        phases=_read_phases(run, list(config.get("phases") or ())),
        evaluation=_read_json(run.evaluation),
        attribution=_read_text(run.shards / ATTRIBUTION_FILE),
    )


def _read_phases(run: RunFolder, order: list[str]) -> list[PhaseRecord]:
    def position(phase: PhaseFolder) -> int:
        return order.index(phase.path.name) if phase.path.name in order else len(order)

    return [_read_phase(phase) for phase in sorted(run.phases(), key=position)]


def _read_phase(phase: PhaseFolder) -> PhaseRecord:
    picture = phase.path / PICTURE_FILE
    return PhaseRecord(
        name=phase.path.name,
        metrics=_read_metrics(phase.metrics),
        drawings=sorted(
            (int(path.stem.removeprefix("step-")), path)
            for path in phase.drawings.glob("step-*.png")
            if path.stem.removeprefix("step-").isdigit()
        ),
        pipeline=picture if picture.is_file() else None,
        bubble=_read_json(phase.path / BUBBLE_FILE) or {},
    )


def _read_metrics(path: Path) -> list[Metrics]:
    read = read_metrics(path)
    if read.fault:
        log.warning("%s", read.fault)
    return [{name: value for name, value in entry.items() if _is_number(value)} for entry in read.entries]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_json(path: Path) -> Any:
    text = _read_text(path)
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise ReportError(f"{path}: not valid JSON ({error}); make it again") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read ({error})") from None
