"""The report of a run: complete, self-contained, and honest about what is missing."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.eval.scenes import shape_scenes
from ufork.errors import StorageError
from ufork.eval.config import EvaluateConfig
from ufork.eval.evaluate import evaluate
from ufork.eval.pictures import write_picture
from ufork.report.charts import Curve, confusion_chart, line_chart, nice_ticks, short_number
from ufork.report.run_record import ReportError, read_run
from ufork.report.run_report import MAX_FRAMES, write_report
from ufork.vocabulary import Task

CONFIG = """
run: {name: tiny <run>}
phases:
  together: {}
  after: {}
"""


class Tags(HTMLParser):
    """Collects what a page loads, and checks that its elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


class Guessing:
    """Answers white, draws black."""

    tasks = tuple(Task)

    def draw(self, prompts, config):
        return np.zeros((len(prompts), shape_scenes.CANVAS_PX, shape_scenes.CANVAS_PX, 3), np.uint8)

    def answer(self, images, questions, config):
        return ["white"] * len(questions)


def read(path):
    tags = Tags()
    tags.feed(path.read_text(encoding="utf-8"))
    assert tags.open == []
    return tags, " ".join(tags.text)


def write_phase(folder, phase, rows, drawings=()):
    target = folder / "phases" / phase
    target.mkdir(parents=True)
    (target / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in drawings:
        write_picture(np.zeros((8, 8, 3), np.uint8), target / "drawings" / f"step-{step:06d}.png")


def metrics(step, **values):
    return {"step": step, "phase": "x", "seconds": step / 10, "loss/understanding": 2.0, **values}


@pytest.fixture(scope="module")
def run(tmp_path_factory, sources, detector):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "versions.json").write_text(json.dumps({"torch": "2.13.0"}))
    (folder / "shards").mkdir()
    (folder / "shards" / "ATTRIBUTION.md").write_text("Shapes & friends, CC0")
    write_phase(folder, "after", [metrics(10), metrics(20, **{"loss/generation": 1.5})], range(1, 20))
    write_phase(folder, "together", [metrics(30, gradient_norm=float("nan")), metrics(40)])
    config = EvaluateConfig(questions_per_skill=4, drawings_per_skill=3, examples_per_skill=2)
    heldout = sources / "heldout"
    record = evaluate(
        Guessing(), config, heldout, detector, examples_folder=folder / "evaluation", emoji_folder=heldout
    )
    record.save(folder / "evaluation.json")
    write_report(folder)
    return folder


def test_page_is_well_formed_and_loads_nothing(run):
    tags, _ = read(run / "report.html")
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in tags.loaded)
    text = (run / "report.html").read_text()
    assert "<script" not in text and "url(" not in text and "@import" not in text
    assert not re.findall(r"https?://(?!www\.w3\.org)", text)


def test_every_section_is_there(run):
    _, text = read(run / "report.html")
    for heading in ("Drawings", "Answers", "Scores", "Confusion", "Training", "While it trained", "Emoji", "Setup"):
        assert heading in text
    for detail in ("tiny <run>", "Attribute binding", "Mean over skills", "2.13.0", "Shapes & friends, CC0"):
        assert detail in text
    pictures = (run / "report.html").read_text().count("data:image/png")
    assert pictures == 6 * 2 * 3 + MAX_FRAMES + len(list((run / "evaluation").glob("scenes-*emoji*"))) + 6 * 2


def test_stages_stand_in_the_recipes_order(run):
    assert [phase.name for phase in read_run(run).phases] == ["together", "after"]


def test_numbers_that_are_not_finite_are_left_out(run):
    together, after = read_run(run).phases
    assert "gradient_norm" not in together.metrics[0]
    assert (together.steps, together.seconds, after.drawings[0][0], after.drawings[-1][0]) == (40, 4.0, 1, 19)


def test_marks_right_and_wrong_beyond_colour(run):
    _, text = read(run / "report.html")
    assert "✓" in text and "✗" in text


def test_unfinished_run_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: young}")
    _, text = read(write_report(tmp_path))
    assert "not evaluated yet" in text and "Confusion" not in text


def test_damaged_lines_of_the_metrics_are_skipped_with_a_warning(tmp_path, caplog):
    write_phase(tmp_path, "only", [metrics(10)])
    path = tmp_path / "phases" / "only" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2')
    assert [row["step"] for row in read_run(tmp_path).phases[0].metrics] == [10]
    path.write_text('{"step": 2\n' + path.read_text())
    assert [row["step"] for row in read_run(tmp_path).phases[0].metrics] == [10]
    assert "metrics.jsonl: 1 lines are damaged and were skipped" in caplog.text


def test_missing_example_is_named_not_fatal(run):
    example = sorted((run / "evaluation").glob("scenes-real-counting-*"))[0]
    kept = example.read_bytes()
    example.unlink()
    try:
        _, text = read(write_report(run))
        assert f"{example.name} is missing" in text
    finally:
        example.write_bytes(kept)


@pytest.mark.parametrize("file", ["evaluation.json", "versions.json", "config.yaml"])
def test_damaged_file_is_named(tmp_path, file):
    (tmp_path / "config.yaml").write_text("run: {}")
    (tmp_path / file).write_text("{")
    with pytest.raises(ReportError, match=file):
        write_report(tmp_path)


def test_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ReportError, match="give the folder of a run"):
        write_report(tmp_path)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {}")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StorageError, match=r"report\.html"):
        write_report(tmp_path)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_enclose_the_values_evenly(one, other):
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (12, "12"),
        (1806, "1806"),
        (34_000, "34k"),
        (2e-5, "2e-5"),
        (3e-4, "3e-4"),
        (5e6, "5M"),
    ],
)
def test_short_numbers(value, text):
    assert short_number(value) == text


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(-100, 100)), min_size=1, max_size=600), st.booleans())
def test_curves_stay_inside_the_chart(points, from_zero):
    points = sorted(points)
    curves = [Curve(phase="one", points=[], steps=10), Curve(phase="<two>", points=points, steps=points[-1][0])]
    svg = line_chart(curves, label="a & b", colour="--ink", from_zero=from_zero and min(y for _, y in points) >= 0)
    read_points = re.search(r'polyline class="curve" points="([^"]*)"', svg).group(1)
    pairs = np.array([pair.split(",") for pair in read_points.split()], float)
    assert len(pairs) <= 240
    assert (pairs >= 0).all() and (pairs[:, 0] <= 480).all() and (pairs[:, 1] <= 220).all()
    assert "<two>" not in svg


def test_confusion_leaves_out_what_never_occurred():
    svg = confusion_chart({"one": {"one": 3, "other": 1}, "two": {}, "three": {"one": 2}}, label="counts")
    assert ">two<" not in svg
    assert svg.count("<rect") == 2 * 3
    assert 'class="right"' in svg and "three, answered one: 2" in svg


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 3), (-2, -2), (-5e-324, 5e-324), (1e6, 1e6 + 1e-9)])
def test_ticks_of_no_span_are_still_two(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] < ticks[-1] and len(ticks) <= 8
