"""The figure by layer: its curves are means over seeds of what probes measured."""

import pytest

from tests.analysis.ablation.trials import layers, measured, trial
from ufork.analysis.ablation.layer_figure import draw_layers
from ufork.analysis.figure import png_of


def test_alignment_is_that_of_the_end_and_the_cosine_the_mean_of_all_measurements():
    results = [measured("shared", 0), measured("shared", 1), measured("expert", 0, conflict=False), trial("unmeasured")]
    figure = draw_layers(results)
    shared, expert = (figure.axes[column::2] for column in range(2))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["shared", "expert"]
    curve, permuted = shared[1].lines
    assert list(curve.get_xdata()) == [0, 1, 2]
    assert list(curve.get_ydata()) == pytest.approx([0.25, 1.25, 2.25])
    assert list(permuted.get_ydata()) == pytest.approx([0.01] * 3)
    _, cosine = shared[2].lines  # after the line at 0
    assert list(cosine.get_xdata()) == [1] and list(cosine.get_ydata()) == pytest.approx([0.15])
    assert len(expert[2].lines) == 1
    assert png_of(figure) == png_of(draw_layers(results))


def test_without_measurements_it_is_empty():
    assert not draw_layers([trial("shared")]).axes


def test_the_cosine_of_shared_layers_is_drawn_above_separate_ones():
    model = layers(2, 1, 1, separate_first_layers=3)
    trial_of_x = measured("x", 0)
    figure = draw_layers([trial_of_x.model_copy(update={"recipe": {**trial_of_x.recipe, "model": model}})])
    _, cosine = figure.axes[-1].lines
    assert list(cosine.get_xdata()) == [4]
