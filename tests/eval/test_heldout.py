"""The loss of held-out samples as a benchmark."""

import math
from pathlib import Path

import pytest

from tests.eval.toy import Guessing
from tests.tiny import write_codes_source
from ufork.errors import ShardError
from ufork.eval.config import EvaluateConfig, HeldoutConfig
from ufork.eval.evaluate import evaluate
from ufork.eval.heldout import HeldoutLoss
from ufork.infer.model import TargetLoss
from ufork.vocabulary import Task

CONFIG = HeldoutConfig(samples_per_source=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    for seed, name in enumerate(("one", "two")):
        write_codes_source(folder / name, num_samples=3 + 3 * seed, seed=seed)
    return [folder / "one", folder / "two"]


def run(folder: Path, model, folders):
    return evaluate(
        model, [HeldoutLoss(folders, CONFIG)], EvaluateConfig(), folder=folder, checkpoint="", weights_id=""
    )


def test_loss_is_the_mean_over_the_targets_of_the_first_samples(folders, tmp_path):
    model = Guessing()
    losses = {"one-understanding-1": TargetLoss(nats=10.0, num_targets=7)}
    model.loss = lambda sample: losses.get(sample.id, TargetLoss(nats=6.0, num_targets=3))
    (record,) = run(tmp_path, model, folders).benchmarks
    understanding, generation = record.tables
    assert (understanding.task, generation.task) == (Task.UNDERSTANDING, Task.GENERATION)
    assert understanding.groups["one"].score == pytest.approx((6 + 10 + 6) / (3 + 7 + 3))
    assert generation.groups["one"].score == pytest.approx(2)
    assert [group.num_cases for group in generation.groups.values()] == [3, 4]
    assert generation.groups["one"].normalised is None and not record.examples


def test_a_loss_is_computed_once(folders, tmp_path):
    run(tmp_path, Guessing(), folders)
    model = Guessing()
    run(tmp_path, model, folders)
    assert model.losses == []


@pytest.mark.parametrize("task", Task)
def test_only_the_tasks_of_the_model_are_read(folders, tmp_path, task):
    model = Guessing((task,))
    run(tmp_path, model, folders)
    assert len(model.losses) == 3 + 4 and all(task in name for name in model.losses)


def test_a_loss_that_is_not_finite_is_skipped_and_counted(folders, tmp_path):
    model = Guessing()
    model.loss = lambda sample: TargetLoss(nats=math.nan if sample.id.endswith("-0") else 6.0, num_targets=3)
    (record,) = run(tmp_path, model, folders).benchmarks
    assert (record.num_cases, record.num_skipped) == (2 * (2 + 3), 4)


def test_folders_with_sources_of_one_name_are_all_evaluated(folders, tmp_path):
    write_codes_source(tmp_path / "elsewhere" / "one", num_samples=4, seed=5)
    model = Guessing()
    (record,) = run(tmp_path, model, [folders[0], tmp_path / "elsewhere" / "one"]).benchmarks
    assert len(model.losses) == 2 * (3 + 4)
    assert [group.num_cases for table in record.tables for group in table.groups.values()] == [7, 7]


def test_missing_source_is_named(tmp_path):
    with pytest.raises(ShardError, match="nowhere"):
        HeldoutLoss([tmp_path / "nowhere"], CONFIG)
