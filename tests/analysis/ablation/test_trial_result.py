"""Result files: what is written is read back, and damage is named."""

import json

import pytest

from tests.analysis.ablation.trials import trial
from ufork.analysis.ablation.trial_result import NORMALISED, ResultError, Score, TrialResult, load_results, scores_of
from ufork.eval.record import BenchmarkRecord, Evaluation, GroupScore, ScoreTable
from ufork.vocabulary import Task


def table(**groups):
    return ScoreTable(task=Task.GENERATION, title="Drawings", measure="as asked", groups=groups)


def test_a_file_has_a_line_per_field_and_is_read_back(tmp_path):
    result = trial(seed=3, drawings=0.25)
    path = result.save(tmp_path / "results")
    assert path.name == "shared-seed3.json"
    assert TrialResult.load(path) == result
    assert len(path.read_text().splitlines()) == len(json.loads(path.read_text())) + 2


def test_results_that_exist_are_read_arm_by_arm(tmp_path):
    for arm, seed in (("y", 1), ("shared", 0), ("other", 0)):
        trial(arm, seed).save(tmp_path)
    found = load_results(tmp_path, ["shared", "y"], [0, 1])
    assert [(result.arm, result.seed) for result in found] == [("shared", 0), ("y", 1)]


@pytest.mark.parametrize(
    ("change", "fault"), [({"version": 2}, "version"), ({"steps": -1}, "steps"), ({"scores": "none"}, "scores")]
)
def test_a_damaged_file_is_named_with_the_value_at_fault(tmp_path, change, fault):
    path = trial().save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ResultError, match=rf"{path}: {fault}: .*remove it to run the trial again"):
        TrialResult.load(path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ResultError, match=str(path)):
        TrialResult.load(path)


def test_scores_are_normalised_where_chance_is_known():
    known = table(
        one=GroupScore(score=0.6, num_cases=4, chance=0.2, ceiling=1.0), two=GroupScore(score=1, num_cases=4, chance=0)
    )
    score = Score.of_table("scenes", known)
    assert (score.name, score.measure, score.higher_is_better) == ("scenes/drawings", NORMALISED, True)
    assert score.groups == {"one": pytest.approx(0.5), "two": 1.0} and score.value == pytest.approx(0.75)
    loss = table(scenes=GroupScore(score=2.5, num_cases=4)).model_copy(update={"is_share": False, "measure": "nats"})
    score = Score.of_table("heldout", loss)
    assert (score.measure, score.higher_is_better, score.value) == ("nats", False, 2.5)


def test_every_table_of_an_evaluation_gives_a_score():
    tables = [table(one=GroupScore(score=0.6, num_cases=4))]
    record = dict(title="", description="", figures=[], examples=[], num_cases=4, num_skipped=0, skipped=[])
    benchmarks = [BenchmarkRecord(name=name, tables=tables, **record) for name in ("scenes", "emoji")]
    found = scores_of(Evaluation(checkpoint="", benchmarks=benchmarks, seconds=1.0))
    assert [score.name for score in found] == ["scenes/drawings", "emoji/drawings"]
