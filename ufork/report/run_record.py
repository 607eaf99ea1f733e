"""What a run has left in its folder, read for its report.

    RUN/{config.yaml, versions.json, evaluation.json, evaluation/*.png, shards/ATTRIBUTION.md}
    RUN/phases/NAME/{metrics.jsonl, drawings/step-*.png, pipeline.png, bubble.json}             -> RunRecord

A run may be unfinished or killed amid a line: what is missing is empty here, a broken last line is left out.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ufork.errors import UforkError
from ufork.parallel.tracing.step_trace import BUBBLE_FILE, PICTURE_FILE

Metrics = dict[str, float]
"""One line of metrics.jsonl: numbers by name; what is no number, or not finite, is left out."""


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
    if not (folder / "config.yaml").is_file() and not (folder / "phases").is_dir():
        raise ReportError(f"{folder}: neither config.yaml nor phases/ is there; give the folder of a run")
    text = _read_text(folder / "config.yaml")
    try:
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ReportError(f"{folder / 'config.yaml'}: not valid YAML: {error}") from None
    versions = _read_json(folder / "versions.json") or {}
    return RunRecord(
        name=(config.get("run") or {}).get("name") or folder.resolve().name,
        folder=folder,
        config=text,
        versions={name: str(version) for name, version in versions.items()},
        phases=_read_phases(folder / "phases", list(config.get("phases") or ())),
        evaluation=_read_json(folder / "evaluation.json"),
        attribution=_read_text(folder / "shards" / "ATTRIBUTION.md"),
    )


def _read_phases(folder: Path, order: list[str]) -> list[PhaseRecord]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    return [
        PhaseRecord(
            name=name,
            metrics=_read_metrics(folder / name / "metrics.jsonl"),
            drawings=sorted(
                (int(path.stem.removeprefix("step-")), path)
                for path in (folder / name / "drawings").glob("step-*.png")
                if path.stem.removeprefix("step-").isdigit()
            ),
            pipeline=picture if (picture := folder / name / PICTURE_FILE).is_file() else None,
            bubble=_read_json(folder / name / BUBBLE_FILE) or {},
        )
        for name in names
    ]


def _read_metrics(path: Path) -> list[Metrics]:
    rows: list[Metrics] = []
    lines = _read_text(path).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break  # the run was killed while it wrote this
            raise ReportError(f"{path}: line {number} is not JSON; remove it") from None
        rows.append({name: value for name, value in row.items() if _is_number(value)})
    return rows


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
