"""Verdicts: what is as recorded, worse, better, missing, or not recorded."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.recipe import read_recipe
from pipelines.verification.judge import Verdict, judge, passes
from pipelines.verification.recorded import Measured, Recorded, mean_and_spread, recorded_table
from pipelines.verification.verify import comparison, require_recorded
from ufork.errors import ConfigError

ROOT = Path(__file__).parents[3]
RECORDED = Recorded.load()


def measured(answers=(0.78, 0.80, 0.82), drawings=(0.5, 0.6, 0.7), machine="fast"):
    runs = [
        {"seed": seed, "minutes": 17 + seed, "answers": answer, "drawings": drawing}
        for seed, (answer, drawing) in enumerate(zip(answers, drawings, strict=True))
    ]
    return Measured.from_mapping({"machine": machine, "hardware": "2 cores", "runs": runs}, origin="test")


def verdicts(measured, **scores):
    return [each.verdict for each in judge(measured, scores)]


def test_three_runs_give_the_prediction_interval_of_one_more():
    """m - t s sqrt(1 + 1/n) = 0.80 - 2.920 x 0.02 x 1.1547"""
    answers, _ = judge(measured(), {"answers": 0.80, "drawings": 0.6})
    assert answers.lowest == pytest.approx(0.7326, abs=1e-4)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [(0.74, Verdict.AS_RECORDED), (0.73, Verdict.WORSE), (0.86, Verdict.AS_RECORDED), (0.87, Verdict.BETTER)],
)
def test_a_score_within_the_range_is_as_recorded(now, verdict):
    assert verdicts(measured(), answers=now, drawings=0.6) == [verdict, Verdict.AS_RECORDED]


def test_runs_that_agree_by_chance_do_not_make_the_range_vanish():
    assert verdicts(measured(answers=(0.8, 0.8, 0.8)), answers=0.77, drawings=0.6)[0] is Verdict.AS_RECORDED


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"answers": 0.8, "drawings": 0.6}, True),
        ({"answers": 0.8, "drawings": 0.9}, True),
        ({"answers": 0.8, "drawings": 0.1}, False),
        ({"answers": 0.8}, False),
        ({}, False),
    ],
)
def test_a_run_passes_if_nothing_is_worse_or_missing(scores, expected):
    assert passes(judge(measured(), scores)) is expected


def test_a_score_that_is_not_recorded_is_not_judged():
    only_answers = measured(drawings=(None, None, None))
    assert verdicts(only_answers, answers=0.8, drawings=0.1) == [Verdict.AS_RECORDED, Verdict.NOT_RECORDED]
    assert passes(judge(only_answers, {"answers": 0.8}))
    assert not passes(judge(measured(answers=(None,) * 3, drawings=(None,) * 3), {"answers": 0.8}))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=15), st.floats(-1, 1))
def test_a_higher_score_never_gets_a_worse_verdict(recorded, now):
    order = [Verdict.WORSE, Verdict.AS_RECORDED, Verdict.BETTER]
    runs = measured(recorded, recorded)
    lower, higher = (verdicts(runs, answers=score, drawings=score)[0] for score in (now, now + 0.1))
    assert order.index(lower) <= order.index(higher)


def test_the_table_says_what_was_recorded_and_what_is_missing():
    shown = comparison(judge(measured(drawings=(None, 0.5, None)), {"answers": 0.5}))
    assert "0.80 ± 0.02" in shown and "0.50  worse than recorded" in shown
    assert shown.splitlines()[-1].split() == ["drawings", "0.50", "-", "-", "not", "recorded"]


def test_another_class_of_machine_or_too_few_runs_are_refused_before_anything_runs():
    recipe = {"recipe": "demo.yaml", "command": "make demo"}
    one = measured().model_copy(update={"machine": "slow", "runs": measured().runs[:1]})
    recorded = Recorded.from_mapping(
        {"recipes": [{**recipe, "measured": [measured().model_dump(), one.model_dump()]}]}, origin="test"
    ).of(Path("anywhere/demo.yaml"))
    assert require_recorded(recorded, "fast") == measured()
    for machine in ("slow", "other"):
        with pytest.raises(ConfigError, match=f"class of machine {machine}: .*recorded: fast 3, slow 1"):
            require_recorded(recorded, machine)


def test_a_recipe_without_results_is_refused_with_those_that_have_some():
    with pytest.raises(ConfigError, match=r"mine.yaml: no results .*recipes/demo.yaml"):
        RECORDED.of(Path("mine.yaml"))


def test_mean_and_spread_of_one_value_is_that_value():
    assert [mean_and_spread(values) for values in ([], [0.5], [0.5, 0.7])] == ["not measured", "0.50", "0.60 ± 0.14"]


@pytest.mark.parametrize("recipe", RECORDED.recipes, ids=lambda recipe: recipe.recipe)
def test_recorded_recipes_ship_and_have_the_classes_that_were_measured(recipe):
    classes = {each.name for each in read_recipe(ROOT / recipe.recipe).demo.machines}
    assert {each.machine for each in recipe.measured} <= classes


def test_every_recipe_that_ships_has_a_row():
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "pipelines/recipes").glob("*.yaml")}
    assert {recipe.recipe for recipe in RECORDED.recipes} == shipped


def test_the_page_shows_what_is_recorded():
    page = (ROOT / "docs/verified.md").read_text(encoding="utf-8")
    assert recorded_table(RECORDED) in page, "print(recorded_table(Recorded.load())) gives the table"
