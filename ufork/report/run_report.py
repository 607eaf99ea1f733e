"""One self-contained HTML page about a run.

    RUN folder -> RunRecord -> sections: drawings, answers, scores, confusion (`report_results.py`), curves per task,
    drawings while it trained, a traced step, config, versions -> RUN/report.html

No script, no font, no file but itself; light and dark, narrow and wide.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ufork.files import write_whole
from ufork.report.charts import Curve, line_chart, short_number
from ufork.report.page import page, panel, picture, tile
from ufork.report.results import answers, confusions, drawings, emoji, scores
from ufork.report.run_record import PhaseRecord, RunRecord, read_run
from ufork.run_folder import RunFolder

CURVES = (
    ("loss/understanding", "Loss of understanding, nats per token", "--understanding", False),
    ("loss/generation", "Loss of generation, nats per code", "--generation", False),
    ("tokens_per_s", "Real tokens per second", "--ink", True),
    ("padding_share", "Share of padding", "--ink", True),
    ("gradient_norm", "Gradient norm", "--ink", True),
    ("learning_rate", "Learning rate", "--ink", True),
    ("memory_mb", "Peak memory, MB", "--ink", True),
)
"""Metric, heading, colour, whether the axis starts at 0."""

MAX_FRAMES = 8
"""Drawings shown of a phase, evenly spaced, first and last among them."""


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into a run's folder and returns its path.

    Raises:
        ReportError: the folder is no run's, or a file in it is damaged.
        StorageError: the report cannot be written.
    """
    html = render(read_run(run_folder))
    path = RunFolder(run_folder).report
    write_whole(path, html)
    return path


def render(record: RunRecord) -> str:
    """The page as text."""
    evaluation = record.evaluation or {}
    examples = RunFolder(record.folder).examples
    sections = [
        ("Drawings", drawings(evaluation, examples)),
        ("Answers", answers(evaluation, examples)),
        ("Scores", scores(evaluation)),
        ("Confusion", confusions(evaluation)),
        ("Training", _curves(record.phases)),
        ("While it trained", _film(record.phases)),
        ("A step of the pipeline", _pipelines(record.phases)),
        ("Emoji", emoji(evaluation.get("emoji"), examples)),
        ("Setup", _setup(record)),
    ]
    return page(
        record.name,
        "A ufork run: one trunk, an understanding and a generation branch",
        sections=sections,
        head=_tiles(record, evaluation),
        footer=_plain(record.attribution) or "Made by ufork.",
    )


def _tiles(record: RunRecord, evaluation: Mapping[str, Any]) -> str:
    tiles = []
    if answers := evaluation.get("answers_mean"):
        tiles.append(
            _mean_tile("Answers", answers["normalised"], "of the way from chance to perfect", "--understanding")
        )
    if mean := evaluation.get("drawings_mean"):
        way = "of the way from chance to the judge's ceiling"
        tiles.append(_mean_tile("Drawings", mean["normalised"], way, "--generation"))
    if frechet := evaluation.get("frechet"):
        note = f"real images have {frechet['real']:.2f}; {frechet['num_drawings']} drawings"
        tiles.append(tile("Fréchet distance", f"{frechet['drawings']:.2f}", f"in the judge's features; {note}"))
    if steps := sum(phase.steps for phase in record.phases):
        minutes = sum(phase.seconds for phase in record.phases) / 60
        names = ", ".join(phase.name for phase in record.phases)
        tiles.append(tile("Training", f"{minutes:.1f} min", f"{steps:,} steps: {names}"))
    if not evaluation:
        tiles.append(tile("Evaluation", "–", "not evaluated yet: ufork evaluate RECIPE"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _mean_tile(label: str, share: float, note: str, colour: str) -> str:
    return tile(label, f"{share:.2f}", f"{note}, mean over skills", colour=colour, share=share)


def _curves(phases: Sequence[PhaseRecord]) -> str:
    charts = {style[0]: _chart(phases, *style) for style in CURVES}
    losses = "".join(chart for metric, chart in charts.items() if metric.startswith("loss/"))
    others = "".join(chart for metric, chart in charts.items() if not metric.startswith("loss/"))
    if not losses and not others:
        return ""
    lengths = ", ".join(f"{escape(phase.name)} ({phase.steps:,} steps)" for phase in phases)
    intro = f"<p>By step, phases end to end: {lengths}.</p>"
    return f'{intro}<div class="grid losses">{losses}</div><div class="grid charts">{others}</div>'


def _chart(phases: Sequence[PhaseRecord], metric: str, heading: str, colour: str, from_zero: bool) -> str:
    curves = [
        Curve(
            phase=phase.name,
            points=[(row["step"], row[metric]) for row in phase.metrics if metric in row and "step" in row],
            steps=phase.steps,
        )
        for phase in phases
    ]
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return ""
    note = f"{short_number(drawn[-1].points[-1][1])} at the end"
    return panel(heading, line_chart(curves, label=heading, colour=colour, from_zero=from_zero), note=note)


def _film(phases: Sequence[PhaseRecord]) -> str:
    parts = []
    for phase in phases:
        if phase.drawings:
            frames = "".join(
                f"<figure>{picture(path, f'drawings after step {step}')}<figcaption>step {step:,}</figcaption></figure>"
                for step, path in _spaced(phase.drawings, MAX_FRAMES)
            )
            parts.append(f'<h3>{escape(phase.name)}</h3><div class="film">{frames}</div>')
    return "".join(parts)


def _pipelines(phases: Sequence[PhaseRecord]) -> str:
    parts = []
    for phase in phases:
        if phase.pipeline:
            shares = ", ".join(f"{escape(name)} {share:.0%}" for name, share in phase.bubble.items())
            shown = picture(phase.pipeline, f"who ran what in one step of {phase.name}")
            caption = f"<figcaption>Share of the step without work: {shares}</figcaption>"
            parts.append(f'<h3>{escape(phase.name)}</h3><figure class="card">{shown}{caption}</figure>')
    return "".join(parts)


def _setup(record: RunRecord) -> str:
    parts = []
    if record.versions:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in record.versions.items()
        )
        parts.append(f'<h3>Versions</h3><div class="card scroll"><table>{rows}</table></div>')
    if record.config:
        parts.append("<h3>Config</h3>")
        parts.append(
            f'<details class="card"><summary>The resolved recipe</summary><pre>{escape(record.config)}</pre></details>'
        )
    return "".join(parts)


def _plain(markdown: str) -> str:
    """Headings without their marks, and no empty lines."""
    return "\n".join(line.lstrip("# ") for line in markdown.splitlines() if line.strip())


def _spaced(items: Sequence[tuple[int, Path]], number: int) -> list[tuple[int, Path]]:
    if len(items) <= number:
        return list(items)
    return [items[round(index * (len(items) - 1) / (number - 1))] for index in range(number)]
