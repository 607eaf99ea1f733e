"""Statistics count every sample in one bin per table, add up over jobs, and stay bounded in size."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.report.statistics import MAX_NAMES, OTHERS, TABLES, Statistics
from ufork.data.shards.sample import Sample
from ufork.vision.image_header import ImageHeader
from ufork.vocabulary import Task


def sample(text: str = "a dog", *, licence: str = "CC0-1.0", task: Task = Task.GENERATION) -> Sample:
    turns = ((text, "yes"),) if task == Task.UNDERSTANDING else ()
    return Sample(id="one", task=task, source="s", licence=licence, prompt="" if turns else text, turns=turns)


def header(width_px: int = 640, height_px: int = 480, num_bytes: int = 1000) -> ImageHeader:
    return ImageHeader(format="jpg", width_px=width_px, height_px=height_px, num_bytes=num_bytes)


ADDED = st.tuples(
    st.builds(sample, st.text(max_size=30), licence=st.sampled_from(["", "CC0-1.0"]), task=st.sampled_from(Task)),
    st.none() | st.builds(header, st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 10**9)),
    st.sampled_from([None, "en", "de"]),
)


def counted(added) -> Statistics:
    statistics = Statistics()
    for one, image, language in added:
        statistics.add(one, image, language=language)
    return statistics


def test_one_sample_of_each_task():
    statistics = counted([(sample("a dog"), header(), "en"), (sample("what?", task=Task.UNDERSTANDING), None, None)])
    assert (statistics.num_samples, statistics.image_bytes, statistics.text_chars) == (2, 1000, 13)
    assert {name: statistics.rows(name) for name in TABLES} == {
        "task": [("generation", 1), ("understanding", 1)],
        "format": [("jpg", 1)],
        "short_side_px": [("384 to 512", 1)],
        "aspect": [("1.1 to 1.4", 1)],
        "text_chars": [("under 10", 2)],
        "language": [("en", 1)],
        "licence": [("CC0-1.0", 2)],
    }


@pytest.mark.parametrize(
    ("side", "name"),
    [(1, "under 64"), (63, "under 64"), (64, "64 to 128"), (2047, "1024 to 2048"), (2048, "2048 and more")],
)
def test_a_bin_begins_at_its_edge(side, name):
    assert counted([(sample(), header(side, side), None)]).rows("short_side_px") == [(name, 1)]


def test_empty_bins_between_used_ones_are_shown():
    statistics = counted([(sample(), header(side, side), None) for side in (100, 100, 300)])
    assert statistics.rows("short_side_px") == [("64 to 128", 2), ("128 to 256", 0), ("256 to 384", 1)]


@settings(max_examples=60)
@given(st.lists(ADDED, max_size=12), st.lists(ADDED, max_size=12))
def test_jobs_add_up_and_survive_json(first, second):
    one, other = counted(first), counted(second)
    both = one + other
    assert both == counted(first + second) == other + one
    assert (one, other) == (counted(first), counted(second))
    assert Statistics.from_dict(json.loads(json.dumps(both.to_dict()))) == both
    assert sum(number for _, number in both.rows("text_chars")) == both.num_samples


def test_names_beyond_the_limit_are_counted_together():
    added = [(sample(licence=f"licence {number}"), None, None) for number in range(3 * MAX_NAMES)]
    statistics = counted(added[: 2 * MAX_NAMES]) + counted(added[2 * MAX_NAMES :])
    assert statistics.tables["licence"][OTHERS] == 2 * MAX_NAMES
    assert len(statistics.tables["licence"]) == MAX_NAMES + 1
    assert statistics.tables["licence"].total() == 3 * MAX_NAMES
