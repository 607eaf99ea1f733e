"""The picture of alignment over depth: a panel per model, a line per task, the null beside it."""

import pytest

from ufork.analysis.alignment_figure import alignment_figure
from ufork.analysis.alignment_record import AlignmentCurve, AlignmentRecord, LayerAlignment, ModelAlignment, Score
from ufork.analysis.figure import TASK_COLOURS, png_of
from ufork.vocabulary import Task

MEASURE = "cka"


def expert(task):
    """A model with one path, whose score is a tenth of the layer's number above its null."""
    layers = [
        LayerAlignment(
            layer=number,
            stage="trunk" if number else "input",
            scores={MEASURE: Score(score=0.1 + number / 10, null_mean=0.1, null_std=0.01)},
        )
        for number in range(3)
    ]
    return ModelAlignment(name=f"expert for {task}", curves=[AlignmentCurve(task=task, layers=layers)])


def test_a_panel_per_model_and_a_legend_of_all_tasks():
    record = AlignmentRecord(
        data=["pets"], text="own", settings={}, seconds=1.0, num_pairs=50, models=[expert(task) for task in Task]
    )
    figure = alignment_figure(record, MEASURE)
    upper, lower = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in upper] == ["expert for understanding", "expert for generation"]
    assert [text.get_text() for text in upper[0].get_legend().get_texts()] == [str(task) for task in Task]
    for axes, below, task in zip(upper, lower, Task, strict=True):
        scores, null = axes.lines[:2]
        assert scores.get_color() == TASK_COLOURS[task]
        assert list(scores.get_ydata()) == pytest.approx([0.1, 0.2, 0.3])
        assert list(null.get_ydata()) == pytest.approx([0.1] * 3)
        assert list(below.lines[0].get_ydata()) == pytest.approx([0, 0.1, 0.2])


def test_names_are_no_formulas():
    model = expert(Task.GENERATION).model_copy(update={"name": r"runs/$\frac{$"})
    record = AlignmentRecord(data=["pets"], text="own", settings={}, seconds=1.0, num_pairs=50, models=[model])
    assert png_of(alignment_figure(record, MEASURE)).startswith(b"\x89PNG")
