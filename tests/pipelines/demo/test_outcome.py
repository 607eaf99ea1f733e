"""Scores beside what was expected, and why one is low."""

import json

import pytest
import yaml

from pipelines.demo.config import ExpectedScores, VerbSeconds
from pipelines.demo.outcome import low_scores, next_commands, reason_for_low_scores, scores_of
from pipelines.demo.verbs import demo_verbs, training_position
from pipelines.recipe import read_recipe
from tests.pipelines.test_all_verbs import RECIPE
from ufork.eval.record import BenchmarkRecord, Evaluation, GroupScore, ScoreTable
from ufork.vocabulary import Task


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    phases = {
        "joint": {"train": {"steps": 100, "limit_seconds": 80}},
        "late": {"train": {"steps": 10, "limit_seconds": 20}},
    }
    run = {"name": "tiny", "folder": str(tmp_path)}
    path.write_text(yaml.safe_dump({"run": run, **RECIPE, "phases": phases}))
    return read_recipe(path)


def trained(recipe, phase, step, seconds):
    metrics = recipe.run_folder.phase(phase).metrics
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"step": step, "seconds": seconds}) + "\n")


def benchmark(name, score, tasks=tuple(Task), chance=0.2):
    tables = [
        ScoreTable(
            task=task, title="T", measure="right", groups={"g": GroupScore(score=score, num_cases=1, chance=chance)}
        )
        for task in tasks
    ]
    return BenchmarkRecord(
        name=name,
        title="",
        description="",
        tables=tables,
        figures=[],
        examples=[],
        num_cases=1,
        num_skipped=0,
        skipped=[],
    )


def test_scores_are_those_of_the_first_benchmark_that_has_them(tmp_path):
    path = tmp_path / "evaluation.json"
    loss = benchmark("heldout", 2.0, chance=None)
    emoji = benchmark("emoji", 1.0, [Task.UNDERSTANDING])
    Evaluation(checkpoint="c", benchmarks=[loss, benchmark("scenes", 0.6), emoji], seconds=1).save(path)
    assert scores_of(path) == pytest.approx({"answers": 0.5, "drawings": 0.5})


def test_a_score_without_expectation_is_never_low():
    assert low_scores({"answers": 0.1, "drawings": 0.39}, ExpectedScores(drawings=0.4)) == ["drawings"]
    assert low_scores({"answers": -1.0, "drawings": 0.4}, ExpectedScores(drawings=0.4)) == []


def test_other_load_time_limits_or_neither_are_the_reason(recipe):
    assert "training had 1.2 of 2 cores" in reason_for_low_scores(recipe, 1.2, 2)
    trained(recipe, "joint", 60, 80)
    trained(recipe, "late", 10, 9)
    assert "joint 60 of 100 steps)" in reason_for_low_scores(recipe, 1.8, 2)
    trained(recipe, "joint", 100, 70)
    assert "did all its training" in reason_for_low_scores(recipe, None, 2)


def test_the_position_of_training_follows_steps_or_seconds_whichever_is_further(recipe):
    assert training_position(recipe).share == 0
    trained(recipe, "joint", 50, 20)
    assert training_position(recipe).share == pytest.approx(0.4)
    trained(recipe, "joint", 60, 80)
    trained(recipe, "late", 5, 2)
    position = training_position(recipe)
    assert position.share == pytest.approx(0.9) and position.note == "late, step 5 of 10"


def test_the_verbs_are_those_of_a_run_in_this_order(recipe):
    names = [verb.name for verb in demo_verbs(recipe, VerbSeconds(), ranks=2)]
    assert names == [
        "prepare",
        "tokenizer text",
        "tokenizer fit",
        "tokenizer encode",
        "train",
        "evaluate",
        "report",
    ]


def test_commands_to_try_use_the_last_phase_and_a_prompt_of_the_recipe(recipe):
    draw, answer, serve = next_commands(recipe, ".venv/bin/ufork")
    assert draw.startswith(".venv/bin/ufork draw --checkpoint") and "/late/weights" in draw and '"a dog"' in draw
    assert "/late/weights" in answer
    assert serve.startswith(".venv/bin/ufork serve --checkpoint") and serve.endswith("/late/weights")
