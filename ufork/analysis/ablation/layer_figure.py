"""Figure of a suite by layer: alignment of image and text features, and below it the conflict of the tasks' gradients.

What probes measured during training (TrialResult.probes) -> a column per arm: mutual neighbours, CKA, cosine -> Figure

Alignment is that of an arm's last measurement, each layer's image features against its text features
(docs/alignment.md); dashed, that of permuted pairs. The cosine of the two tasks' gradients in each shared layer is the
mean over all measurements of a trial. Lines are means over seeds, bands their range.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ufork.analysis.ablation.layer_curves import CKA, MUTUAL_NEIGHBOURS, alignment_curve, conflict_curve
from ufork.analysis.ablation.statistics import arms_of
from ufork.analysis.ablation.trial_result import TrialResult
from ufork.analysis.figure import TASK_COLOURS, new_figure
from ufork.vocabulary import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (2.6, 2.0)
MEASURES = {MUTUAL_NEIGHBOURS: "mutual neighbours", CKA: "debiased CKA"}


def draw_layers(results: Sequence[TrialResult]) -> "Figure":
    """Draws the arms of which a probe has measured something.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    measured = [result for result in results if any(result.probes.values())]
    arms = arms_of(measured)
    rows = len(MEASURES) + 1
    figure = new_figure(width_inches=PANEL_INCHES[0] * max(len(arms), 2), height_inches=PANEL_INCHES[1] * rows)
    if not arms:
        return figure
    panels = figure.subplots(rows, len(arms), sharex=True, sharey="row", squeeze=False)
    for column, arm in enumerate(arms):
        trials = [result for result in measured if result.arm == arm]
        for row, measure in enumerate(MEASURES):
            _draw_alignment(panels[row][column], trials, measure)
        _draw_conflict(panels[-1][column], trials)
        panels[0][column].set_title(arm, fontsize=9)
        panels[-1][column].set_xlabel("layer")
    for task in Task:
        panels[0][0].plot([], [], color=TASK_COLOURS[task], label=str(task))
    panels[0][0].legend(frameon=False, fontsize=7)
    for row, label in enumerate((*MEASURES.values(), "cosine of gradients")):
        panels[row][0].set_ylabel(label, fontsize=8)
    return figure


def _draw_alignment(axes: "Axes", trials: Sequence[TrialResult], measure: str) -> None:
    for task in Task:
        for of_permuted, style in ((False, "-"), (True, "--")):
            curves = [alignment_curve(trial, measure, task, of_permuted=of_permuted) for trial in trials]
            _draw(axes, curves, TASK_COLOURS[task], style)


def _draw_conflict(axes: "Axes", trials: Sequence[TrialResult]) -> None:
    axes.axhline(0, color="0.6", linewidth=0.8)
    first_shared = 1 + trials[0].recipe["model"].get("separate_first_layers", 0)
    _draw(axes, [conflict_curve(trial) for trial in trials], "0.25", "-", first_layer=first_shared)


def _draw(axes: "Axes", curves: Sequence[Sequence[float]], colour: str, style: str, *, first_layer: int = 0) -> None:
    """Draws mean and range of the curves that are not empty, the first value at `first_layer` on the axis."""
    if not any(curves):
        return
    heights = np.array([curve for curve in curves if curve])
    layers = np.arange(first_layer, first_layer + heights.shape[1])
    axes.plot(layers, heights.mean(0), style, color=colour, linewidth=1.2, marker="." if style == "-" else "")
    axes.fill_between(layers, heights.min(0), heights.max(0), color=colour, alpha=0.15, linewidth=0)
