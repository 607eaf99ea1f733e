"""Counts of kept and dropped records add up, and name the first records of each reason."""

import json

from hypothesis import given
from hypothesis import strategies as st

from data_prep.report.selection import MAX_EXAMPLES, Selection
from data_prep.report.statistics import MAX_NAMES, OTHERS


def selected(drops: list[tuple[str, str]], kept: int = 0) -> Selection:
    selection = Selection(kept=kept)
    for record_id, reason in drops:
        selection.drop(record_id, reason)
    return selection


def test_the_first_of_each_reason_are_named():
    selection = selected([(f"record {number}", "no text") for number in range(50)] + [("x", "too long")], kept=9)
    assert selection.num_records == 60 and selection.dropped == {"no text": 50, "too long": 1}
    assert selection.examples == {"no text": [f"record {number}" for number in range(MAX_EXAMPLES)], "too long": ["x"]}


DROPS = st.lists(
    st.tuples(st.text(max_size=4), st.sampled_from(["no text", "too long", "near duplicate"])), max_size=20
)


@given(DROPS, DROPS, st.integers(0, 9))
def test_jobs_add_up_and_survive_json(first, second, kept):
    one, other = selected(first, kept), selected(second, 2)
    both = one + other
    assert both == selected(first + second, kept + 2)
    assert (one, other) == (selected(first, kept), selected(second, 2))
    assert Selection.from_dict(json.loads(json.dumps(both.to_dict()))) == both


def test_any_number_of_reasons_and_names_stays_bounded():
    selection = selected([("n" * 10_000, f"reason {number}") for number in range(2 * MAX_NAMES)])
    selection += selected([("last", f"another {number}") for number in range(2 * MAX_NAMES)])
    assert selection.dropped[OTHERS] == 3 * MAX_NAMES and len(selection.dropped) == MAX_NAMES + 1
    assert len(selection.examples[OTHERS]) == MAX_EXAMPLES
    assert len(json.dumps(selection.to_dict())) < 50_000
