"""Figures of a suite: what they show, and that they are made from result files alone."""

import pytest

from tests.analysis.ablation.trials import layers, trial
from ufork.analysis.ablation.figures import _series, draw_fork_depth, draw_learning_curves
from ufork.analysis.ablation.trial_result import TrialResult, load_results
from ufork.analysis.figure import png_of


@pytest.fixture
def study(tmp_path):
    """Results of a small study, as files."""
    arms = {
        "expert": layers(4, 0, 0, tasks=["understanding"]),
        "shared": layers(4, 0, 0),
        "y-3": layers(3, 1, 1, intermediate_size=40),
        "y-1": layers(1, 3, 3),
        "asymmetric": layers(3, 1, 2),
        "wider": layers(2, 2, 2, hidden_size=48),
    }
    for number, (name, model) in enumerate(arms.items()):
        for seed in range(2):
            trial(name, seed, model=model, answers=0.5 + number / 20 + seed / 50).save(tmp_path)
    return load_results(tmp_path, list(arms), [0, 1])


def test_arms_that_differ_only_in_the_fork_are_one_series(study):
    assert _series([result for result in study if result.seed == 0]) == ["shared", "y-3", "y-1"]


@pytest.mark.parametrize("draw", [draw_fork_depth, draw_learning_curves])
def test_figures_are_drawn_from_files_alone_and_are_the_same_every_time(study, draw):
    again = [TrialResult.model_validate_json(result.model_dump_json()) for result in study]
    first, second = (png_of(draw(results)) for results in (study, again))
    assert first.startswith(b"\x89PNG") and first == second


def test_the_figure_has_a_line_for_the_series_points_for_others_and_levels_for_experts(study):
    (panel,) = draw_fork_depth(study).axes
    labels = panel.get_legend_handles_labels()[1]
    assert sorted(labels) == ["asymmetric", "expert", "forks, shared", "wider"]
    line = next(line for line in panel.lines if list(line.get_xdata()) == [1, 3, 4])
    assert list(line.get_ydata()) == pytest.approx([0.66, 0.61, 0.56])
