"""The evaluator, with a benchmark and models whose results are known beforehand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.eval.toy import Guessing, Toy
from ufork.errors import ConfigError, StorageError
from ufork.eval.benchmark import case_seed
from ufork.eval.config import EvaluateConfig
from ufork.eval.evaluate import evaluate
from ufork.eval.record import Evaluation, EvaluationError
from ufork.vocabulary import Task

CONFIG = EvaluateConfig(examples_per_group=2, draw={"batch_prompts": 4, "seed": 7}, answer={"batch_questions": 3})


def run(folder, model, *benchmarks, config=CONFIG, weights_id="w"):
    return evaluate(model, benchmarks, config, folder=folder, checkpoint="weights", weights_id=weights_id)


def test_cases_are_batched_by_kind_of_request_and_reported_in_their_order(tmp_path):
    model, toy = Guessing(), Toy(5)
    evaluation = run(tmp_path, model, toy)
    assert [len(batch) for batch in model.answered] == [3, 2]
    assert [len(batch) for batch in model.drawn] == [4, 1]
    assert all(len({case_id[0] for case_id in batch}) == 1 for batch in toy.batches)
    assert toy.reported == [name for number in range(5) for name in (f"q{number}", f"d{number}")]
    assert evaluation.benchmarks[0].num_cases == 10
    assert {name: group.num_cases for name, group in evaluation.benchmarks[0].tables[0].groups.items()} == {
        "even": 3,
        "all": 5,
        "odd": 2,
    }


def test_the_seed_of_a_case_does_not_depend_on_its_batch(tmp_path):
    model, other = Guessing(), Guessing()
    run(tmp_path / "one", model, Toy(5))
    run(
        tmp_path / "other",
        other,
        Toy(5),
        config=CONFIG.model_copy(update={"draw": CONFIG.draw.model_copy(update={"batch_prompts": 1})}),
    )
    assert model.seeds == other.seeds and len(set(model.seeds.values())) == 5
    assert model.seeds["prompt 3"] == case_seed(7, "d3") != case_seed(8, "d3")
    assert all(0 <= seed < 2**63 for seed in model.seeds.values())


@pytest.mark.parametrize("task", Task)
def test_a_model_with_one_branch_is_evaluated_in_its_own_task(task, tmp_path):
    model = Guessing(tasks=(task,))
    evaluation = run(tmp_path, model, Toy(3))
    assert evaluation.benchmarks[0].num_cases == 3
    assert bool(model.answered) == (task is Task.UNDERSTANDING)
    assert bool(model.drawn) == (task is Task.GENERATION)


def test_the_first_cases_of_each_group_and_task_are_examples_with_pictures(tmp_path):
    (record,) = run(tmp_path, Guessing(), Toy(5)).benchmarks
    shown = [(example.task, example.group, example.text) for example in record.examples]
    assert shown == [
        (Task.UNDERSTANDING, "even", "0?"),
        (Task.GENERATION, "all", "prompt 0"),
        (Task.UNDERSTANDING, "odd", "1?"),
        (Task.GENERATION, "all", "prompt 1"),
        (Task.UNDERSTANDING, "even", "2?"),
        (Task.UNDERSTANDING, "odd", "3?"),
    ]
    for example in record.examples:
        pixels = np.asarray(Image.open(tmp_path / example.picture))
        assert (pixels == (9 if example.task is Task.UNDERSTANDING else 0)).all()
    assert record.examples[0].answer == "white" and record.examples[1].answer == ""


class Interrupted(Exception):
    pass


def test_a_resumed_evaluation_runs_only_missing_cases(tmp_path):
    model, undisturbed = Guessing(), run(tmp_path / "undisturbed", Guessing(), Toy(10))

    def refuse(*arguments, **options):
        raise Interrupted

    model.draw, draw = (lambda *a, **o: refuse() if model.drawn else draw(*a, **o)), model.draw
    with pytest.raises(Interrupted):
        run(tmp_path / "run", model, Toy(10))
    before = {name for batch in (*model.answered, *model.drawn) for name in batch}
    again = Guessing()
    resumed = run(tmp_path / "run", again, Toy(10))
    after = {name for batch in (*again.answered, *again.drawn) for name in batch}
    assert len(before) > 5 and not before & after and len(before | after) == 20
    assert resumed.benchmarks == undisturbed.benchmarks


def test_an_enlarged_evaluation_runs_only_new_cases(tmp_path):
    run(tmp_path, Guessing(), Toy(4))
    model = Guessing()
    (record,) = run(tmp_path, model, Toy(6)).benchmarks
    assert (model.answered, model.drawn, record.num_cases) == ([["4?", "5?"]], [["prompt 4", "prompt 5"]], 12)


@pytest.mark.parametrize("change", ["weights", "benchmark", "sampling"])
def test_other_weights_data_or_sampling_start_over(tmp_path, change):
    run(tmp_path, Guessing(), Toy(4))
    model, toy, config = Guessing(), Toy(4), CONFIG
    toy.fingerprint = "2" if change == "benchmark" else "1"
    if change == "sampling":
        config = CONFIG.model_copy(update={"draw": CONFIG.draw.model_copy(update={"guidance": 2.0})})
    run(tmp_path, model, toy, config=config, weights_id="other" if change == "weights" else "w")
    assert sum(map(len, (*model.answered, *model.drawn))) == 8


@pytest.mark.parametrize("damage", [b'{"id": "q1", "sc', b"\xff\xfe\x00\n", b'{"id": 3}\n[]\n' + b"[" * 100_000])
def test_damaged_lines_of_the_log_are_scored_again(tmp_path, damage):
    expected = run(tmp_path, Guessing(), Toy(4)).benchmarks
    path = tmp_path / "toy" / "cases.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]) + damage)
    model = Guessing()
    assert run(tmp_path, model, Toy(4)).benchmarks == expected
    assert sum(map(len, (*model.answered, *model.drawn))) == 2


@pytest.mark.parametrize(
    "change",
    [(b'"right":true', b'"right":false'), (b'"details":{', b'"details":{"x":1,'), (b'"group":"', b'"group":"x')],
)
def test_an_edited_line_of_the_log_is_scored_again(tmp_path, change):
    """Rows M5 and M7: no edited case becomes another score."""
    expected = run(tmp_path, Guessing(), Toy(4)).benchmarks
    path = tmp_path / "toy" / "cases.jsonl"
    content = path.read_bytes()
    assert change[0] in content
    path.write_bytes(content.replace(*change))
    assert run(tmp_path, Guessing(), Toy(4)).benchmarks == expected


def test_a_missing_picture_of_an_example_is_made_again(tmp_path):
    (record,) = run(tmp_path, Guessing(), Toy(4)).benchmarks
    (tmp_path / record.examples[1].picture).unlink()
    model = Guessing()
    run(tmp_path, model, Toy(4))
    assert (model.drawn, model.answered) == ([["prompt 0"]], [])
    assert (tmp_path / record.examples[1].picture).is_file()


def test_a_case_whose_image_is_damaged_is_skipped_and_counted(tmp_path):
    (record,) = run(tmp_path, Guessing((Task.UNDERSTANDING,)), Toy(5, damaged=(0, 3))).benchmarks
    assert (record.num_cases, record.num_skipped) == (3, 2)
    assert record.skipped[0].startswith("q0: ")


def test_a_damaged_reference_picture_does_not_end_the_evaluation(tmp_path):
    toy = Toy(3)
    cases = toy.cases
    toy.cases = lambda tasks: (replace(case, reference=b"no image") for case in cases(tasks))
    (record,) = run(tmp_path, Guessing((Task.GENERATION,)), toy).benchmarks
    assert record.num_cases == 3 and [example.reference for example in record.examples] == [None, None]


def test_without_any_case_the_remedy_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"toy.*evaluate\.heldout\.folders"):
        run(tmp_path, Guessing(), Toy(0))


def test_the_record_is_read_from_json_with_its_derived_values(tmp_path):
    evaluation = run(tmp_path, Guessing(), Toy(3))
    evaluation.save(tmp_path / "new" / "evaluation.json")
    assert Evaluation.load(tmp_path / "new" / "evaluation.json") == evaluation
    values = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert values["version"] == 2 and values["benchmarks"][0]["tables"][0]["mean"]["normalised"] == 1
    assert "1.00 of the way from chance to perfect" in evaluation.summary()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', "[" * 10_000, '{"version": 2, "benchmarks": 3}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(EvaluationError, match="evaluation.json"):
        Evaluation.load(tmp_path / "evaluation.json")


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        run(tmp_path / "file" / "x", Guessing(), Toy(2))
