"""The list of skipped samples: a disk that is full costs lines of it, not the run."""

import json

import pytest

from ufork.data.config import SKIPPED_BEFORE_LIMIT
from ufork.data.skipped_samples import SkippedSamples
from ufork.data.task_stream import SkippedSample
from ufork.errors import SampleError
from ufork.vocabulary import Task


def skipped(number):
    return SkippedSample(task=Task.GENERATION, source="s", sample=str(number), reason="empty", detail="")


def test_a_list_that_cannot_be_written_is_one_error_in_the_log_and_samples_still_count(tmp_path, caplog):
    (tmp_path / "skipped").touch()  # no folder can be made here
    samples = SkippedSamples(tmp_path / "skipped", replica=0, max_share=0.1)
    for number in range(SKIPPED_BEFORE_LIMIT):
        samples.add([skipped(number)])
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "skipped: cannot be written" in caplog.messages[1] and "training continues" in caplog.messages[1]
    with pytest.raises(SampleError):
        samples.check(SKIPPED_BEFORE_LIMIT)


def test_the_list_is_continued_where_it_can_be_written_again(tmp_path):
    (tmp_path / "skipped").touch()
    samples = SkippedSamples(tmp_path / "skipped", replica=0, max_share=0.1)
    samples.add([skipped(1)])
    (tmp_path / "skipped").unlink()
    samples.add([skipped(2)])
    lines = (tmp_path / "skipped" / "replica-00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample"] for line in lines] == ["2"]
