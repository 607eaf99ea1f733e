"""The contents of a run's folder, read and checked for its report.

    RUN/{config.yaml, versions.json, evaluation.json, alignment/, shards/ATTRIBUTION.md}
    RUN/phases/NAME/{metrics.jsonl, probes/*.jsonl, drawings/step-*.png, pipeline.png, bubble.json} -> RunRecord

A run may be unfinished: what is missing is empty here. A file that is damaged is empty too, and named in `faults`; no
file of a run can make its report fail.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from ufork.analysis.alignment_record import RECORD, AlignmentRecord, AnalysisError
from ufork.config import read_mapping
from ufork.data.shards.writer import ATTRIBUTION_FILE
from ufork.errors import ConfigError, UforkError
from ufork.eval.record import Evaluation, EvaluationError
from ufork.files import read_bounded
from ufork.parallel.tracing.step_trace import BUBBLE_FILE, PICTURE_FILE
from ufork.report.metrics import read_metrics
from ufork.run_folder import PhaseFolder, RunFolder

Metrics = dict[str, float]
"""One line of metrics.jsonl: finite numbers by name."""

Measured = TypeVar("Measured", Evaluation, AlignmentRecord)

MAX_TEXT_BYTES = 4 * 2**20
"""Largest config, versions, bubble or attribution file that is read."""
MAX_STEP = 10**12
MAX_VALUE = 1e30
"""Largest number of a metric that is read; charts could not be scaled to larger ones."""

_VERSIONS = TypeAdapter(dict[str, str])
_BUBBLE = TypeAdapter(dict[str, Annotated[float, Field(ge=0, le=1)]])


class ReportError(UforkError):
    """The folder is not that of a run."""


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """One phase's curves and drawings."""

    name: str
    metrics: list[Metrics]
    """Lines with an integer `step`, in order."""
    probes: dict[str, list[Metrics]]
    """Measurements during training by probe, as `metrics`."""
    drawings: list[tuple[int, Path]]
    """(step, grid of drawings), in order."""
    pipeline: Path | None
    """Picture of a traced step."""
    bubble: dict[str, float]
    """Idle share of each pipeline stage in that step."""

    @property
    def steps(self) -> int:
        """The last step that was logged, or 0."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def seconds(self) -> float:
        """The time at the last logged step."""
        return self.metrics[-1].get("seconds", 0.0) if self.metrics else 0.0


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that a report shows."""

    name: str
    folder: Path
    config: str
    """YAML; empty when there is none."""
    versions: dict[str, str]
    phases: list[PhaseRecord]
    """Phases in the order of the config, others after them by name."""
    evaluation: Evaluation | None
    alignment: AlignmentRecord | None
    attribution: str
    faults: list[str] = field(default_factory=list)
    """Files that could not be read, with the reasons."""


def read_run(path: Path) -> RunRecord:
    """Reads the folder of a run.

    Raises:
        ReportError: `path` is not the folder of a run.
    """
    folder, faults = RunFolder(path), list[str]()
    if not folder.config.exists() and not folder.phases():
        raise ReportError(f"{path}: neither config.yaml nor phases/ exists there; give the folder of a run")
    config = _config(folder.config, faults)
    run, phases = config.get("run"), config.get("phases")
    name = run.get("name") if isinstance(run, dict) else None
    return RunRecord(
        name=str(name or path.resolve().name),
        folder=path,
        config=_text(folder.config, faults),
        versions=_json(folder.versions, _VERSIONS, {}, faults),
        phases=_phases(folder, list(map(str, phases)) if isinstance(phases, dict) else [], faults),
        evaluation=_measured(Evaluation.load, folder.evaluation, faults),
        alignment=_measured(AlignmentRecord.load, folder.alignment / RECORD, faults),
        attribution=_text(folder.shards / ATTRIBUTION_FILE, faults),
        faults=list(dict.fromkeys(faults)),
    )


def _config(path: Path, faults: list[str]) -> dict[Any, Any]:
    if not _text(path, faults).strip():
        return {}
    try:
        return read_mapping(path)
    except (ConfigError, RecursionError, ValueError) as error:  # a date or number that Python cannot represent
        faults.append(f"{path}: {str(error).removeprefix(f'{path}: ')}")
        return {}


def _measured(load: Callable[[Path], Measured], path: Path, faults: list[str]) -> Measured | None:
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except (EvaluationError, AnalysisError) as error:
        faults.append(str(error))
        return None


def _phases(run: RunFolder, order: list[str], faults: list[str]) -> list[PhaseRecord]:
    def position(phase: PhaseFolder) -> int:
        return order.index(phase.path.name) if phase.path.name in order else len(order)

    return [_phase(phase, faults) for phase in sorted(run.phases(), key=position)]


def _phase(phase: PhaseFolder, faults: list[str]) -> PhaseRecord:
    picture = phase.path / PICTURE_FILE
    return PhaseRecord(
        name=phase.path.name,
        metrics=_metrics(phase.metrics, faults),
        probes={path.stem: _metrics(path, faults) for path in sorted(phase.probes.glob("*.jsonl"))},
        drawings=sorted(
            (int(path.stem.removeprefix("step-")), path)
            for path in phase.drawings.glob("step-*.png")
            if _is_step(path.stem.removeprefix("step-"))
        ),
        pipeline=picture if picture.is_file() else None,
        bubble=_json(phase.path / BUBBLE_FILE, _BUBBLE, {}, faults),
    )


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(MAX_STEP))


def _metrics(path: Path, faults: list[str]) -> list[Metrics]:
    read = read_metrics(path)
    if read.fault:
        faults.append(read.fault)
    entries = [entry for entry in read.entries if entry["step"] <= MAX_STEP]
    return [{name: value for name, value in entry.items() if _is_number(value)} for entry in entries]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_VALUE  # false for NaN, too


def _json(path: Path, schema: TypeAdapter[Any], missing: Any, faults: list[str]) -> Any:
    text = _text(path, faults)
    try:
        return schema.validate_json(text, strict=True) if text else missing
    except ValidationError as error:
        faults.append(f"{path}: {error.errors(include_url=False, include_input=False)[0]['msg']}")
        return missing


def _text(path: Path, faults: list[str]) -> str:
    """Returns a file's text; empty for a file that is missing, and for one that cannot be read, which is a fault."""
    try:
        return read_bounded(path, MAX_TEXT_BYTES).decode()
    except FileNotFoundError:
        return ""
    except OSError as error:
        faults.append(f"{path}: cannot be read ({error.strerror})")
    except UnicodeDecodeError as error:
        faults.append(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})")
    return ""
