"""Figures of a suite, from its results alone: learning curves by arm, and scores against fork depth.

TrialResult of each arm and seed -> statistics.py -> Figure
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ufork.analysis.ablation.statistics import arms_of, estimates, score_names
from ufork.analysis.ablation.trial_result import Curve, Score, TrialResult
from ufork.analysis.figure import TASK_COLOURS, new_figure
from ufork.vocabulary import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (5.2, 3.8)
MAX_COLUMNS = 3
"""Panels side by side."""
LAYERS = ("trunk_layers", "understanding_layers", "generation_layers")
"""Keys of a recipe's model that decide where branches leave the trunk, and how deep they are."""
WITHIN_SERIES = (*LAYERS, "intermediate_size")
"""Keys by which the arms of one series of fork depths may differ: widths make arms of equal total size."""


def draw_learning_curves(results: Sequence[TrialResult]) -> "Figure":
    """Draws the training loss of each arm by task: the mean over seeds, and the range of the seeds.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    tasks = [task for task in Task if any(task in result.curves for result in results)]
    figure, panels = _panels(len(tasks))
    for task, axes in zip(tasks, panels, strict=True):
        for arm, colour in _colours(results).items():
            curves = [result.curves[task] for result in results if result.arm == arm and task in result.curves]
            if curves:
                _draw_curves(axes, curves, label=arm, colour=colour)
        axes.set(title=f"loss of {task}", xlabel="step", ylabel="nats per target", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.legend(fontsize=8)
    return figure


def _colours(results: Sequence[TrialResult]) -> dict[str, str]:
    """Returns a colour of matplotlib's cycle for each arm, the same in all figures."""
    return {arm: f"C{number}" for number, arm in enumerate(arms_of(results))}


def _draw_curves(axes: "Axes", curves: Sequence[Curve], *, label: str, colour: str) -> None:
    """Draws curves on the steps of the first, as far as all of them go."""
    last = min(curve.steps[-1] for curve in curves)
    steps = [step for step in curves[0].steps if step <= last]
    losses = np.array([np.interp(steps, curve.steps, curve.losses) for curve in curves])
    axes.plot(steps, losses.mean(0), color=colour, label=label, linewidth=1.2)
    axes.fill_between(steps, losses.min(0), losses.max(0), color=colour, alpha=0.15, linewidth=0)


def draw_fork_depth(results: Sequence[TrialResult]) -> "Figure":
    """Draws every score against the number of trunk layers, with standard errors over seeds.

    Arms that differ only in where equally deep branches leave the trunk, and in width, are joined by a line, from the
    earliest fork to the fully shared model. Other arms with both tasks are single points, and experts are horizontal
    lines.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    names = score_names(results)
    figure, panels = _panels(len(names))
    first = {result.arm: result for result in reversed(results)}
    series = _series(list(first.values()))
    for name, axes in zip(names, panels, strict=True):
        score = next(score for result in results for score in result.scores if score.name == name)
        _draw_series(axes, results, score, sorted(series, key=lambda arm: _depth(first[arm])))
        for arm, colour in _colours(results).items():
            if arm not in series:
                _draw_single(axes, results, score, first[arm], colour=colour)
        better = "" if score.higher_is_better else ", lower is better"
        axes.set(title=name, xlabel="fork depth (trunk layers)", ylabel=score.measure + better)
        axes.locator_params(axis="x", integer=True)
        axes.legend(fontsize=8)
    return figure


def _series(results: Sequence[TrialResult]) -> list[str]:
    """Returns the largest group of arms with both tasks and equally deep paths that differ only in `WITHIN_SERIES`."""
    groups: dict[str, list[str]] = {}
    for result in results:
        model = result.recipe["model"]
        trunk, understanding, generation = (model[key] for key in LAYERS)
        if len(model["tasks"]) == len(Task) and understanding == generation:
            rest = {key: value for key, value in model.items() if key not in WITHIN_SERIES}
            others = {key: value for key, value in result.recipe.items() if key not in ("run", "model")}
            same = json.dumps([trunk + understanding, rest, others], sort_keys=True)
            groups.setdefault(same, []).append(result.arm)
    return max(groups.values(), key=len, default=[])


def _depth(result: TrialResult) -> int:
    return result.recipe["model"]["trunk_layers"]


def _draw_series(axes: "Axes", results: Sequence[TrialResult], score: Score, arms: Sequence[str]) -> None:
    depths = {result.arm: _depth(result) for result in results}
    found = {arm: estimates(results, arm).get(score.name) for arm in arms}
    points = [(depths[arm], each.mean, each.standard_error or 0.0) for arm, each in found.items() if each]
    if points:
        x, y, errors = zip(*points, strict=True)
        axes.errorbar(x, y, errors, color=TASK_COLOURS[score.task], marker="o", capsize=3, label="forks, shared")


def _draw_single(
    axes: "Axes", results: Sequence[TrialResult], score: Score, result: TrialResult, *, colour: str
) -> None:
    """Draws an arm outside the series: a level if it has one task, and otherwise a point at its fork."""
    found = estimates(results, result.arm).get(score.name)
    if found is None:
        return
    error, is_expert = found.standard_error or 0.0, len(result.recipe["model"]["tasks"]) == 1
    if is_expert:
        axes.axhline(found.mean, color="0.35", linestyle="--", linewidth=1, label=result.arm)
        axes.axhspan(found.mean - error, found.mean + error, color="0.35", alpha=0.12, linewidth=0)
    else:
        axes.errorbar(_depth(result), found.mean, error, color=colour, marker="s", capsize=3, ls="", label=result.arm)


def _panels(number: int) -> "tuple[Figure, list[Axes]]":
    """Returns a figure with `number` panels, in rows."""
    columns = max(1, min(number, MAX_COLUMNS))
    rows = max(1, -(-number // columns))
    figure = new_figure(width_inches=PANEL_INCHES[0] * columns, height_inches=PANEL_INCHES[1] * rows)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(number)]
