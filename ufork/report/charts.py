"""Charts as inline SVG, coloured by the page's style so that they follow light and dark.

    values by step of each phase -> line_chart      counts by truth and answer -> confusion_chart

Coordinates are computed here; the templates line_chart.svg.j2 and confusion_chart.svg.j2 draw them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil, floor, log10

from markupsafe import Markup

from ufork.report.page import render

MAX_POINTS = 240
"""Longer curves are drawn through the means of neighbouring points."""

CHART_WIDTH, CHART_HEIGHT = 480, 220
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 12, 22, 28
CELL = 26
"""Side of a cell of a confusion chart."""
LETTER_WIDTH = 6.6
"""Rough width of a letter of a confusion's labels."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One phase's values over its steps (step, value), in order."""

    phase: str
    points: Sequence[tuple[float, float]]
    steps: int
    """The phase's length, which takes its room on the axis even without points."""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Maps steps and values to the drawing's units."""

    last_step: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return round(MARGIN_LEFT + step / self.last_step * (CHART_WIDTH - MARGIN_LEFT - MARGIN_RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(CHART_HEIGHT - MARGIN_BOTTOM - share * (CHART_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM), 1)


def line_chart(curves: Sequence[Curve], *, label: str, colour: str, from_zero: bool = False) -> Markup:
    """Draws curves of successive phases end to end on one axis of steps, with a boundary between them.

    Args:
        curves: one per phase, at least one of them with a point.
        label: description of the chart for screen readers.
        colour: a colour class of style.css, such as `generation`.
        from_zero: whether the value axis starts at 0 instead of near the smallest value.
    """
    ends = [0, *accumulate(curve.steps for curve in curves)]
    values = [value for curve in curves for _, value in curve.points]
    ticks = nice_ticks(0.0 if from_zero else min(values), max(values))
    frame = _Frame(last_step=max(ends[-1], 1), low=ticks[0], high=ticks[-1])
    step_ticks = [tick for tick in nice_ticks(0, frame.last_step) if tick <= frame.last_step]
    drawn = [
        {
            "phase": curve.phase,
            "x": frame.x(start),
            "name_fits": len(curve.phase) * LETTER_WIDTH < frame.x(end) - frame.x(start),
            "points": [
                {"x": frame.x(start + step), "y": frame.y(value), "step": step, "value": value}
                for step, value in thinned(curve.points)
            ],
        }
        for curve, (start, end) in zip(curves, pairwise(ends), strict=True)
    ]
    return render(
        "line_chart.svg.j2",
        label=label,
        colour=colour,
        curves=drawn,
        value_ticks=[(frame.y(tick), short_number(tick)) for tick in ticks],
        step_ticks=[(frame.x(tick), short_number(tick)) for tick in step_ticks],
        width=CHART_WIDTH,
        height=CHART_HEIGHT,
        left=MARGIN_LEFT,
        right=CHART_WIDTH - MARGIN_RIGHT,
        top=MARGIN_TOP,
    )


def confusion_chart(counts: Mapping[str, Mapping[str, int]], *, label: str) -> Markup:
    """Draws truths as rows and answers as columns; the strength of a cell is its share of the row.

    Args:
        counts: `GroupScore.confusion`; truths that never occurred and answers never given are omitted.
        label: description of the chart for screen readers.
    """
    rows = {truth: row for truth, row in counts.items() if any(row.values())}
    given = {answer for row in rows.values() for answer, count in row.items() if count}
    answers = [name for name in counts if name in given or name in rows]
    answers += sorted(given - set(answers))
    margin = round(max((len(name) for name in answers), default=0) * LETTER_WIDTH + 12)
    cells = [
        (truth, [(answer, row.get(answer, 0), row.get(answer, 0) / sum(row.values())) for answer in answers])
        for truth, row in rows.items()
    ]
    return render(
        "confusion_chart.svg.j2",
        label=label,
        answers=answers,
        rows=cells,
        margin=margin,
        cell=CELL,
        width=margin + CELL * len(answers) + 4,
        height=margin + CELL * len(rows) + 4,
    )


def nice_ticks(low: float, high: float, *, number: int = 4) -> list[float]:
    """Returns about `number` evenly spaced round values that enclose `low` and `high`, at least two."""
    largest = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * largest else largest or 1.0
    rough = max(span / number, 1e-300)
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def short_number(value: float) -> str:
    """Returns the value in about four characters: 0, 0.25, 12, 3.4k, 2e-5."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Returns at most `most` points (step, value): the means of neighbouring ones, at the last of their steps."""
    bucket = max(ceil(len(points) / most), 1)
    groups = [points[start : start + bucket] for start in range(0, len(points), bucket)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
