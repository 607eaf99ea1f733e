"""Charts as inline SVG: text in, text out, colours from the page's style so that they follow light and dark.

phases' values by step -> line_chart        counts by truth and answer -> confusion_chart
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise
from math import ceil, floor, log10

from ufork.eval.scenes.questions import OTHER

MAX_POINTS = 240
"""Longer curves are drawn through the means of neighbours."""

CHART_WIDTH, CHART_HEIGHT = 480, 220
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 12, 22, 28
CELL = 26
"""Side of a confusion's cell."""
LETTER_WIDTH = 6.6
"""Rough width of a letter of a confusion's labels."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One phase's values over its steps (step, value), in order."""

    phase: str
    points: Sequence[tuple[float, float]]
    steps: int
    """The phase's length, which it takes on the axis even without points."""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Maps steps and values to the drawing's units."""

    last_step: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return MARGIN_LEFT + step / self.last_step * (CHART_WIDTH - MARGIN_LEFT - MARGIN_RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return CHART_HEIGHT - MARGIN_BOTTOM - share * (CHART_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)


def line_chart(curves: Sequence[Curve], *, label: str, colour: str, from_zero: bool = False) -> str:
    """Curves of successive phases end to end on one axis of steps, a boundary between them.

    Args:
        curves: one per phase, at least one of them with a point.
        label: what is shown, for those who cannot see it.
        colour: a custom property of the page's style, such as `--generation`.
        from_zero: the value axis starts at 0, else near the smallest value.
    """
    ends = [0, *accumulate(curve.steps for curve in curves)]
    values = [value for curve in curves for _, value in curve.points]
    ticks = nice_ticks(0.0 if from_zero else min(values), max(values))
    frame = _Frame(last_step=max(ends[-1], 1), low=ticks[0], high=ticks[-1])
    parts = [_value_axis(frame, ticks), _step_axis(frame)]
    for curve, (start, end) in zip(curves, pairwise(ends), strict=True):
        parts.append(_phase_mark(frame, curve.phase, start, end))
        if curve.points:
            parts.append(_curve(frame, curve, start, colour))
    return (
        f'<svg class="chart" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def confusion_chart(counts: Mapping[str, Mapping[str, int]], *, label: str) -> str:
    """Truths as rows, answers as columns; a cell is as strong as its share of the row, on the diagonal and off it.

    Args:
        counts: as `AnswerScore.confusion`; truths that never occurred and answers never given are left out.
        label: what is shown, for those who cannot see it.
    """
    given = {answer for row in counts.values() for answer in row}
    answers = [name for name in (*counts, OTHER) if name in given or counts.get(name)]
    counts = {truth: row for truth, row in counts.items() if row}
    margin = max(len(name) for name in answers) * LETTER_WIDTH + 12
    width, height = margin + CELL * len(answers) + 4, margin + CELL * len(counts) + 4
    parts = []
    for column, answer in enumerate(answers):
        x, y = margin + CELL * (column + 0.5) + 4, margin - 6
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}" transform="rotate(-90 {x:.0f} {y:.0f})">{escape(answer)}</text>')
    for row, (truth, answered) in enumerate(counts.items()):
        y = margin + CELL * row
        parts.append(f'<text x="{margin - 6:.0f}" y="{y + CELL / 2 + 4:.0f}" text-anchor="end">{escape(truth)}</text>')
        for column, answer in enumerate(answers):
            share = answered.get(answer, 0) / sum(answered.values())
            parts.append(_cell(margin + CELL * column, y, truth, answer, answered.get(answer, 0), share))
    return (
        f'<svg class="confusion" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" '
        f'role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def nice_ticks(low: float, high: float, *, number: int = 4) -> list[float]:
    """About `number` round values that enclose `low` and `high`, evenly spaced, at least two."""
    largest = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * largest else largest or 1.0
    rough = max(span / number, 1e-300)
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def short_number(value: float) -> str:
    """At most four letters or so: 0, 0.25, 12, 3.4k, 2e-5."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _value_axis(frame: _Frame, ticks: Sequence[float]) -> str:
    return "".join(
        f'<line class="grid" x1="{MARGIN_LEFT}" x2="{CHART_WIDTH - MARGIN_RIGHT}" y1="{frame.y(tick):.1f}" '
        f'y2="{frame.y(tick):.1f}"/><text x="{MARGIN_LEFT - 8}" y="{frame.y(tick) + 4:.1f}" text-anchor="end">'
        f"{short_number(tick)}</text>"
        for tick in ticks
    )


def _step_axis(frame: _Frame) -> str:
    ticks = [tick for tick in nice_ticks(0, frame.last_step) if tick <= frame.last_step]
    return "".join(
        f'<text x="{frame.x(tick):.1f}" y="{CHART_HEIGHT - 8}" text-anchor="middle">{short_number(tick)}</text>'
        for tick in ticks
    )


def _phase_mark(frame: _Frame, phase: str, start: float, end: float) -> str:
    x, room = frame.x(start), frame.x(end) - frame.x(start)
    boundary = f'<line class="boundary" x1="{x:.1f}" x2="{x:.1f}" y1="{MARGIN_TOP - 14}" y2="{CHART_HEIGHT - 22}"/>'
    fits = len(phase) * LETTER_WIDTH < room
    name = f'<text class="phase" x="{x + 5:.1f}" y="{MARGIN_TOP - 8}">{escape(phase)}</text>' if fits else ""
    return (boundary if start else "") + name


def _curve(frame: _Frame, curve: Curve, start: float, colour: str) -> str:
    points = [(frame.x(start + step), frame.y(value), step, value) for step, value in _thinned(curve.points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
    hits = "".join(
        f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(curve.phase)}, step {step:.0f}: '
        f"{value:.4g}</title></circle>"
        for x, y, step, value in points
    )
    return f'<g style="color:var({colour})"><polyline class="curve" points="{path}"/>{hits}</g>'


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    bucket = max(ceil(len(points) / MAX_POINTS), 1)
    groups = [points[start : start + bucket] for start in range(0, len(points), bucket)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _cell(x: float, y: float, truth: str, answer: str, count: int, share: float) -> str:
    kind = "right" if truth == answer else "wrong"
    title = f"<title>{escape(truth)}, answered {escape(answer)}: {count}</title>"
    box = f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{CELL - 2}" height="{CELL - 2}" rx="4" '
    box += f'style="fill-opacity:{0.06 + 0.9 * share if count else 0.03:.2f}">{title}</rect>'
    if not count:
        return box
    strong = " strong" if share > 0.5 else ""
    middle = (CELL - 2) / 2
    return box + (
        f'<text class="count{strong}" x="{x + middle:.0f}" y="{y + middle + 4:.0f}" text-anchor="middle">{count}</text>'
    )
