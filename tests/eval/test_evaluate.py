"""A whole evaluation, with models whose scores are known beforehand."""

import json
from collections import defaultdict

import numpy as np
import pytest

from tests.eval.scenes import shape_scenes
from ufork.data.shards.source import ShardSource
from ufork.errors import ShardError, StorageError
from ufork.eval.config import EvaluateConfig
from ufork.eval.evaluate import evaluate
from ufork.eval.pictures import read_picture
from ufork.eval.scenes.skills import SKILLS
from ufork.vocabulary import Task

SMALL = EvaluateConfig(questions_per_skill=15, drawings_per_skill=8, examples_per_skill=2)


class Knowing:
    """Answers every question rightly and draws the real image of every prompt."""

    tasks = tuple(Task)

    def __init__(self, folder):
        self.pictures = defaultdict(list)
        for sample in every(folder, Task.GENERATION):
            self.pictures[sample.prompt].append(read_picture(sample))
        self.answers = {
            read_picture(sample).tobytes(): sample.turns[0][1] for sample in every(folder, Task.UNDERSTANDING)
        }

    def draw(self, prompts, config):
        return np.stack([self.pictures[prompt].pop(0) for prompt in prompts])

    def answer(self, images, questions, config):
        return [self.answers[image.tobytes()] for image in images]


class Ignorant:
    """Answers always the same and draws nothing."""

    tasks = tuple(Task)

    def draw(self, prompts, config):
        return np.full((len(prompts), shape_scenes.CANVAS_PX, shape_scenes.CANVAS_PX, 3), 255, np.uint8)

    def answer(self, images, questions, config):
        return ["white"] * len(questions)


def every(folder, task):
    source = ShardSource(folder, task)
    return [source[number] for number in range(len(source))]


@pytest.fixture(scope="module")
def knowing(sources, detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("knowing")
    model = Knowing(sources / "heldout")
    record = evaluate(model, SMALL, sources / "heldout", detector, examples_folder=folder / "evaluation")
    return model, record, folder


def test_one_who_knows_all_scores_one(knowing):
    _, record, _ = knowing
    assert list(record.answers) == list(record.drawings) == list(SKILLS)
    assert record.answers_mean["normalised"] == pytest.approx(1)
    assert record.answers_mean["chance"] < 0.9
    assert record.drawings_mean["normalised"] > 0.8
    assert all(score.num_prompts == 8 for score in record.drawings.values())
    assert all(score.num_questions == 15 for score in record.answers.values())


def test_drawings_as_good_as_real_are_as_near_as_real(knowing):
    _, record, _ = knowing
    assert record.frechet.drawings == pytest.approx(record.frechet.real)
    assert (record.frechet.num_drawings, record.frechet.num_reference) == (48, 120 - 48)


@pytest.mark.parametrize("task", Task)
def test_an_expert_is_evaluated_in_its_own_task(task, sources, detector, tmp_path):
    model = Ignorant()
    model.tasks = (task,)
    record = evaluate(model, SMALL, sources / "heldout", detector, examples_folder=tmp_path)
    assert (record.answers_mean is None) == (not record.answer_examples) == (task == Task.GENERATION)
    assert (record.drawings_mean is None) == (not record.drawing_examples) == (task == Task.UNDERSTANDING)
    assert "mean over skills" in record.summary()


def test_examples_are_on_disk_and_json_comes_back(knowing):
    _, record, folder = knowing
    record.save(folder / "evaluation.json")
    mapping = json.loads((folder / "evaluation.json").read_text())
    names = [row["image"] for row in mapping["answer_examples"]]
    names += [row[side] for row in mapping["drawing_examples"] for side in ("drawing", "real")]
    assert len(names) == len(set(names)) == 6 * 2 * 3
    assert all((folder / "evaluation" / name).is_file() for name in names)
    assert mapping["answers_mean"]["normalised"] == pytest.approx(1)
    assert mapping["drawings"]["counting"]["ceiling"] == record.drawings["counting"].ceiling
    assert all(row["right"] for row in mapping["answer_examples"])


def test_one_who_knows_nothing_scores_no_more_than_chance(sources, detector, tmp_path):
    record = evaluate(Ignorant(), SMALL, sources / "heldout", detector, examples_folder=tmp_path)
    assert record.answers_mean["normalised"] <= 0
    assert record.drawings_mean["satisfied"] == 0
    assert record.drawings_mean["normalised"] <= 0
    assert record.frechet.drawings > 2 * record.frechet.real


def test_emoji_are_scored_beside_the_skills(sources, detector, tmp_path):
    config = SMALL.model_copy(update={"emoji_questions": 9, "emoji_drawings": 3, "drawings_per_skill": 1})
    model = Knowing(sources / "heldout")
    record = evaluate(
        model,
        config,
        sources / "heldout",
        detector,
        examples_folder=tmp_path,
        emoji_folder=sources / "heldout",
    )
    assert sum(score.num_questions for score in record.emoji.answers.values()) == 9
    assert [example.right for example in record.emoji.drawing_examples] == [None] * 3
    assert record.answers_mean["normalised"] == pytest.approx(1)


def test_summary_names_every_skill_and_both_scores(knowing):
    _, record, _ = knowing
    summary = record.summary()
    assert all(skill.replace("_", " ") in summary for skill in SKILLS)
    assert "1.00 of the way from chance to perfect" in summary


def test_missing_skill_is_named(detector, tmp_path):
    shape_scenes.write_source(tmp_path / "few", 2, seed=0, split="heldout")
    with pytest.raises(ShardError, match="counting, colours, position, attribute_binding"):
        evaluate(Ignorant(), SMALL, tmp_path / "few", detector, examples_folder=tmp_path)


def test_unwritable_folder_is_named(sources, detector, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        evaluate(Ignorant(), SMALL, sources / "heldout", detector, examples_folder=tmp_path / "file" / "x")
