"""Percent and time left of a demo, over random courses; the line on a terminal and elsewhere."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.demo.progress import DemoProgress, share_by_time
from pipelines.demo.progress_line import ERASE_LINE, ProgressLine, duration

seconds = st.floats(0.1, 1e5)
shares = st.none() | st.floats(0, 1.5)
verbs = st.tuples(seconds, st.lists(st.tuples(st.floats(0, 1e6), shares), max_size=5), st.booleans())


@given(st.lists(verbs, min_size=1, max_size=6))
def test_the_percent_never_decreases_and_ends_at_100(course):
    progress = DemoProgress([expected for expected, _, _ in course])
    seen = [progress.percent]
    for _, steps, counts in course:
        for elapsed, share in steps:
            progress.advance(elapsed, share)
            seen.append(progress.percent)
            assert progress.seconds_left >= 0
        progress.finish(counts=counts)
        seen.append(progress.percent)
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] == 100
    assert progress.seconds_left == 0


def test_a_course_as_expected_counts_down_second_by_second():
    progress = DemoProgress([40, 60])
    progress.advance(10)
    assert (progress.percent, progress.seconds_left) == (10, 90)
    progress.advance(40)
    progress.finish()
    progress.advance(15, 0.25)
    assert progress.percent == 55 and progress.seconds_left == pytest.approx(45)


def test_times_of_finished_verbs_correct_those_of_later_ones():
    progress = DemoProgress([100, 100])
    progress.advance(230)
    progress.finish()
    assert progress.seconds_left == pytest.approx(200)


def test_a_verb_that_had_finished_before_corrects_nothing():
    progress = DemoProgress([5, 100])
    progress.advance(30)
    progress.finish(counts=False)
    assert progress.seconds_left == 100


def test_a_resumed_verb_starts_at_its_share_and_its_own_speed_counts():
    progress = DemoProgress([100])
    progress.advance(1, 0.5)
    assert progress.percent == 50 and progress.seconds_left == 50
    progress.advance(40, 0.75)
    assert progress.seconds_left == pytest.approx(40)


def test_a_verb_that_takes_longer_than_expected_slows_down_and_never_ends_by_time():
    course = [share_by_time(tenths / 10) for tenths in range(200)]
    assert course == sorted(course) and course[5] == 0.5 and course[9] == pytest.approx(0.9) and course[-1] < 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_one_line_in_place_cut_to_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    line = ProgressLine(out)
    line.show("a" * 50)
    line.show("b\x1b[31m")
    line.clear()
    line.clear()
    assert out.getvalue() == f"{ERASE_LINE}{'a' * 19}{ERASE_LINE}b\\x1b[31m{ERASE_LINE}"


def test_elsewhere_a_line_is_printed_at_once_or_after_an_interval(monkeypatch):
    clock = iter([0, 10, 29.9, 30, 30]).__next__
    monkeypatch.setattr("pipelines.demo.progress_line.time.monotonic", clock)
    out = io.StringIO()
    line = ProgressLine(out)
    for text in ("first", "too early", "still", "now"):
        line.show(text)
    line.clear()
    assert out.getvalue() == "first\nnow\n"
    line.show("at once", now=True)
    assert out.getvalue().endswith("at once\n")


@pytest.mark.parametrize(
    ("given_seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")]
)
def test_durations_read_as_people_say_them(given_seconds, text):
    assert duration(given_seconds) == text
