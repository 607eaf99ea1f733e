"""One self-contained HTML page about a run.

    RUN folder -> RunRecord -> sections: each benchmark of the evaluation (`results.py`), alignment by depth, curves per
    task, drawings made during training, a traced step, config, versions, damaged files -> RUN/report.html

The page has no script, no font and no other file; it follows light and dark, narrow and wide.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ufork.analysis.alignment_record import PICTURES, TITLES
from ufork.files import write_whole
from ufork.report.charts import Curve, line_chart, short_number
from ufork.report.page import Pictures, page, render
from ufork.report.results import benchmark_section, benchmark_tiles
from ufork.report.run_record import Metrics, PhaseRecord, RunRecord, read_run
from ufork.run_folder import RunFolder

CURVES = (
    ("loss/understanding", "Loss of understanding, nats per token", "understanding", False),
    ("loss/generation", "Loss of generation, nats per code", "generation", False),
    ("tokens_per_s", "Real tokens per second", "ink", True),
    ("padding_share", "Share of padding", "ink", True),
    ("gradient_norm", "Gradient norm", "ink", True),
    ("learning_rate", "Learning rate", "ink", True),
    ("memory_mb", "Peak memory, MB", "ink", True),
)
"""Metric, heading, colour, whether the axis starts at 0."""

CONFLICT = "gradient_conflict"
"""Probe whose cosines are drawn."""
CONFLICT_HEADING = "Cosine of the tasks' gradients, {}"

MAX_FRAMES = 8
"""Drawings shown per phase, evenly spaced, including the first and the last."""


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into a run's folder and returns its path.

    Raises:
        ReportError: `run_folder` is not the folder of a run.
        StorageError: the report cannot be written.
    """
    path = RunFolder(run_folder).report
    write_whole(path, run_page(read_run(run_folder)))
    return path


def run_page(record: RunRecord) -> str:
    """Returns the page."""
    benchmarks = record.evaluation.benchmarks if record.evaluation else []
    pictures = Pictures(record.folder)
    sections = [
        *((item.title, benchmark_section(item, record.folder, pictures)) for item in benchmarks),
        ("Alignment by depth", _alignment(record, pictures)),
        ("Training", _curves(record.phases)),
        ("While it trained", _film(record.phases, pictures)),
        ("A step of the pipeline", _pipelines(record.phases, pictures)),
        ("Setup", _setup(record)),
        ("Damaged files", render("faults.html.j2", faults=record.faults) if record.faults else ""),
    ]
    return page(
        record.name,
        "A ufork run: one trunk, an understanding and a generation branch",
        sections=sections,
        head=render("head.html.j2", tiles=_tiles(record)),
        footer=_plain(record.attribution) or "Made by ufork.",
    )


def _tiles(record: RunRecord) -> list[dict[str, Any]]:
    tiles = benchmark_tiles(record.evaluation) if record.evaluation else []
    if steps := sum(phase.steps for phase in record.phases):
        minutes = sum(phase.seconds for phase in record.phases) / 60
        names = ", ".join(phase.name for phase in record.phases)
        note = f"{steps:,} steps: {names}"
        tiles.append(dict(label="Training", figure=f"{minutes:.1f} min", note=note, colour="ink", share=None))
    if not record.evaluation:
        note = "not evaluated yet: ufork evaluate RECIPE"
        tiles.append(dict(label="Evaluation", figure="–", note=note, colour="ink", share=None))
    return tiles


def _curves(phases: Sequence[PhaseRecord]) -> Markup | str:
    charts = {style[0]: chart for style in CURVES if (chart := _chart(phases, *style))}
    if not charts:
        return ""
    losses = [chart for metric, chart in charts.items() if metric.startswith("loss/")]
    others = [chart for metric, chart in charts.items() if not metric.startswith("loss/")]
    return render("training.html.j2", phases=phases, losses=losses, others=[*others, *_conflict(phases)])


def _conflict(phases: Sequence[PhaseRecord]) -> list[dict[str, Any]]:
    """Returns charts of the cosines of all shared parameters, and of the first and the last layer of the trunk."""
    names = {name for phase in phases for entry in phase.probes.get(CONFLICT, ()) for name in entry}
    last = sum(name.startswith("cosine/layers.") and name.rpartition(".")[2].isdigit() for name in names) - 1
    drawn = {"cosine/all": "all shared parameters", "cosine/layers.0": "first layer of the trunk"}
    if last > 0:
        drawn[f"cosine/layers.{last}"] = "last layer of the trunk"
    charts = [
        _chart(phases, name, CONFLICT_HEADING.format(where), "ink", False, probe=CONFLICT)
        for name, where in drawn.items()
    ]
    return [chart for chart in charts if chart]


def _chart(
    phases: Sequence[PhaseRecord], metric: str, heading: str, colour: str, from_zero: bool, *, probe: str | None = None
) -> dict[str, Any] | None:
    curves = [
        Curve(
            phase=phase.name,
            points=[(entry["step"], entry[metric]) for entry in _entries(phase, probe) if metric in entry],
            steps=phase.steps,
        )
        for phase in phases
    ]
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return None
    svg = line_chart(curves, label=heading, colour=colour, from_zero=from_zero)
    return {"heading": heading, "svg": svg, "note": f"{short_number(drawn[-1].points[-1][1])} at the end"}


def _entries(phase: PhaseRecord, probe: str | None) -> Sequence[Metrics]:
    return phase.probes.get(probe, ()) if probe else phase.metrics


def _film(phases: Sequence[PhaseRecord], embedded: Pictures) -> Markup | str:
    films = [(phase.name, _spaced(phase.drawings, MAX_FRAMES)) for phase in phases if phase.drawings]
    return render("film.html.j2", phases=films, embed=embedded.url) if films else ""


def _alignment(record: RunRecord, embedded: Pictures) -> Markup | str:
    if not record.alignment:
        return ""
    folder = RunFolder(record.folder).alignment
    pictures = [(TITLES[measure], folder / name) for measure, name in PICTURES.items() if (folder / name).is_file()]
    return render("alignment.html.j2", alignment=record.alignment, pictures=pictures, embed=embedded.url)


def _pipelines(phases: Sequence[PhaseRecord], embedded: Pictures) -> Markup | str:
    traced = [phase for phase in phases if phase.pipeline]
    return render("pipeline.html.j2", phases=traced, embed=embedded.url) if traced else ""


def _setup(record: RunRecord) -> Markup | str:
    if not record.versions and not record.config:
        return ""
    return render("setup.html.j2", versions=record.versions, config=record.config)


def _plain(markdown: str) -> str:
    """Returns the text with the marks of headings and empty lines removed."""
    return "\n".join(line.lstrip("# ") for line in markdown.splitlines() if line.strip())


def _spaced(items: Sequence[tuple[int, Path]], number: int) -> list[tuple[int, Path]]:
    if len(items) <= number:
        return list(items)
    return [items[round(index * (len(items) - 1) / (number - 1))] for index in range(number)]
