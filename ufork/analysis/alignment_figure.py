"""Alignment over depth as a picture: a column per model, generation blue, understanding red, the layer on x.

The upper row has the scores, with the mean of permuted pairs and twice its spread below them; the lower row has what
is left of each score above that mean. A dotted line is between layers that both tasks share and a task's own.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ufork.analysis.alignment_record import TITLES, AlignmentRecord, Measure, ModelAlignment
from ufork.analysis.figure import TASK_COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL_INCHES = (4.2, 2.6)


def alignment_figure(record: AlignmentRecord, measure: Measure) -> "Figure":
    """Draws one measure.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    number = len(record.models)
    figure = new_figure(width_inches=PANEL_INCHES[0] * number, height_inches=PANEL_INCHES[1] * 2)
    axes = figure.subplots(2, number, sharex="col", sharey="row", squeeze=False)
    for column, model in enumerate(record.models):
        _draw(axes[0][column], axes[1][column], model, measure)
        axes[0][column].set_title(model.name)
        axes[1][column].set_xlabel("layer (0: input)")
    axes[0][0].set_ylabel(TITLES[measure])
    axes[1][0].set_ylabel("above permuted pairs")
    for task in dict.fromkeys(curve.task for model in record.models for curve in model.curves):
        axes[0][0].plot([], [], "o-", markersize=3, color=TASK_COLOURS[task], label=str(task))
    axes[0][0].legend(frameon=False)
    return figure


def _draw(upper: Any, lower: Any, model: ModelAlignment, measure: Measure) -> None:
    for curve in model.curves:
        colour, layers = TASK_COLOURS[curve.task], [layer.layer for layer in curve.layers]
        scores = [layer.scores[measure] for layer in curve.layers]
        upper.plot(layers, [score.score for score in scores], "o-", markersize=3, color=colour)
        upper.plot(layers, [score.null_mean for score in scores], "--", linewidth=0.8, color=colour)
        upper.fill_between(
            layers,
            [score.null_mean - 2 * score.null_std for score in scores],
            [score.null_mean + 2 * score.null_std for score in scores],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        lower.plot(layers, [score.above_null for score in scores], "o-", markersize=3, color=colour)
        stages = [layer.stage for layer in curve.layers[1:]]
        for axis in (upper, lower):
            for number, (stage, following) in enumerate(pairwise(stages), start=1):
                if stage != following:
                    axis.axvline(number + 0.5, color="0.6", linestyle=":", linewidth=0.8)
            axis.spines[["top", "right"]].set_visible(False)
    lower.axhline(0, color="0.6", linewidth=0.8)
