"""The scenes and emoji benchmarks, with models whose scores are known beforehand."""

import numpy as np
import pytest

from tests.eval.scenes import shape_scenes
from tests.eval.toy import Guessing, Knowing
from ufork.errors import ShardError
from ufork.eval.config import EvaluateConfig
from ufork.eval.evaluate import evaluate
from ufork.eval.scenes.benchmark import ScenesBenchmark
from ufork.eval.scenes.config import EmojiBenchmarkConfig, ScenesBenchmarkConfig
from ufork.eval.scenes.emoji import EmojiBenchmark
from ufork.eval.scenes.skills import SKILLS
from ufork.vocabulary import Task

SMALL = ScenesBenchmarkConfig(questions_per_skill=15, drawings_per_skill=8)
CONFIG = EvaluateConfig(examples_per_group=2)


def run(folder, model, *benchmarks):
    evaluation = evaluate(model, benchmarks, CONFIG, folder=folder, checkpoint="", weights_id="")
    return evaluation, evaluation.benchmarks[0]


def distances(record):
    return [float(figure.value) for figure in record.figures if figure.label.startswith("Fréchet")]


@pytest.fixture(scope="module")
def knowing(sources, detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("knowing")
    return *run(folder, Knowing(sources / "heldout"), ScenesBenchmark(sources / "heldout", SMALL, detector)), folder


def test_a_model_that_knows_everything_scores_one(knowing):
    _, record, _ = knowing
    answers, drawings = record.tables
    assert list(answers.groups) == list(drawings.groups) == list(SKILLS)
    assert answers.mean.normalised == pytest.approx(1)
    assert answers.mean.chance < 0.9
    assert drawings.mean.normalised > 0.8
    assert all(score.num_cases == 8 for score in drawings.groups.values())
    assert all(score.num_cases == 15 for score in answers.groups.values())


def test_drawings_equal_to_real_images_have_their_distance(knowing):
    _, record, _ = knowing
    drawn, real = distances(record)
    assert drawn == pytest.approx(real)
    assert "72 other real images; 48 drawings" in record.figures[1].note


@pytest.mark.parametrize("task", Task)
def test_a_model_with_one_branch_is_evaluated_in_its_own_task(task, sources, detector, tmp_path):
    benchmark = ScenesBenchmark(sources / "heldout", SMALL, detector if task is Task.GENERATION else None)
    evaluation, record = run(tmp_path, Guessing((task,)), benchmark)
    assert [table.task for table in record.tables] == [task]
    assert {example.task for example in record.examples} == {task}
    assert "mean over groups" in evaluation.summary()


def test_examples_are_written(knowing):
    _, record, folder = knowing
    names = [name for example in record.examples for name in (example.picture, example.reference) if name]
    assert len(names) == len(set(names)) == 6 * 2 * 3
    assert all((folder / name).is_file() for name in names)
    assert all(example.right for example in record.examples if example.task is Task.UNDERSTANDING)


def test_a_model_that_knows_nothing_scores_no_more_than_chance(sources, detector, tmp_path):
    benchmark = ScenesBenchmark(sources / "heldout", SMALL, detector)
    model = Guessing()
    model.draw = lambda prompts, config, seeds: np.full((len(prompts), 64, 64, 3), 255, np.uint8)
    _, record = run(tmp_path, model, benchmark)
    answers, drawings = record.tables
    assert answers.mean.normalised <= 0
    assert drawings.mean.score == 0
    assert drawings.mean.normalised <= 0
    drawn, real = distances(record)
    assert drawn > 2 * real


def test_summary_names_every_skill_and_both_scores(knowing):
    evaluation, _, _ = knowing
    summary = evaluation.summary()
    assert all(skill.replace("_", " ") in summary for skill in SKILLS)
    assert "1.00 of the way from chance to perfect" in summary and "Fréchet distance" in summary


def test_missing_skill_is_named(detector, tmp_path):
    shape_scenes.write_source(tmp_path / "few", 2, seed=0, split="heldout")
    with pytest.raises(ShardError, match="counting, colours, position, attribute_binding"):
        run(tmp_path, Guessing(), ScenesBenchmark(tmp_path / "few", SMALL, detector))


def test_the_emoji_benchmark_runs_with_the_scenes_benchmark(sources, tmp_path):
    benchmark = EmojiBenchmark(sources / "heldout", EmojiBenchmarkConfig(questions=9, drawings=3))
    _, record = run(tmp_path, Knowing(sources / "heldout"), benchmark)
    (table,) = record.tables
    assert sum(score.num_cases for score in table.groups.values()) == 9
    drawn = [example for example in record.examples if example.task is Task.GENERATION]
    assert [example.right for example in drawn] == [None] * 2 and record.num_cases == 12
    assert table.mean.score == 1
