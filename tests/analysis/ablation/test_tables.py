"""The page of a suite has all scores, differences, costs and origins."""

import pytest

from tests.analysis.ablation.trials import arm, measured, trial
from ufork.analysis.ablation.tables import ablation_tables, markdown_table
from ufork.analysis.ablation.trial_result import ResultError


def test_the_page_has_scores_differences_cost_and_origins():
    results = [*arm("shared", 0.1, 0.3, loss=2.0), *arm("y", 0.2, 0.5), trial("expert", 0, answers=None, drawings=0.5)]
    page = ablation_tables("toy", results, num_trials=9, baselines=["shared"])
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("|")}
    assert page.startswith("# toy\n\n5 of 9 results.\n\n## Scores")
    assert "scenes/answers (0 chance, 1 perfect)" in page
    assert "heldout/generation (nats per image code, lower is better)" in page
    assert "| shared | 2     | 0.200 ± 0.100" in page and "| expert | 1     | –" in page
    assert "## Difference from shared" in page and "+0.150 ± 0.050, p 0.205" in page and "Of the 1 tests here" in page
    assert "| 10 " in rows["y"] and "1,000" in rows["y"], "the last table is the cost"
    assert page.endswith("- commits: 0123456789ab\n- machines: 2 cores\n- torch: 2.13.0\n")


def test_alignment_is_shown_less_that_of_permuted_pairs():
    page = ablation_tables("toy", [measured("y", 0), measured("y", 1), trial("expert")], num_trials=3, baselines=[])
    section = page.split("## Alignment by layer")[1].split("##")[0]
    head, _, *rows = [line for line in section.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["arm", "path", "0", "1", "2"]
    assert [cell.strip() for cell in rows[0].split("|")[1:-1]] == [
        "y",
        "generation",
        "0.240 ± 0.050",
        "1.240 ± 0.050",
        "2.240 ± 0.050",
    ]
    assert len(rows) == 1, "an arm without measurements has no row"


def test_a_suite_without_results_has_a_page():
    assert ablation_tables("toy", [], num_trials=4, baselines=[]) == "# toy\n\n0 of 4 results.\n"


def test_tables_are_aligned():
    assert markdown_table([["a", "bb"], ["ccc", "d"]]).splitlines() == ["| a   | bb |", "|-----|----|", "| ccc | d  |"]


def test_curves_of_other_layers_are_an_error_that_names_the_trial():
    """Found by the fuzz suite."""
    result = measured("y", 0)
    for measurement in result.probes["alignment"]:
        del measurement["mutual_neighbours_of_permuted/generation/layers.2"]
    with pytest.raises(ResultError, match="y-seed0: probes: not all curves of alignment have the same layers"):
        ablation_tables("toy", [result], num_trials=1, baselines=[])


def test_names_of_others_are_text():
    page = ablation_tables("toy", [trial("a|b<img>", 0)], num_trials=1, baselines=[])
    assert r"| a\|b\<img> |" in page
