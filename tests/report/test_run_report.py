"""The report of a run: complete, self-contained, and explicit about what is missing or damaged."""

import json
import os
import re
import shutil
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.eval.toy import Guessing
from tests.tiny import write_codes_source
from ufork.errors import StorageError
from ufork.eval.config import EvaluateConfig, HeldoutConfig
from ufork.eval.evaluate import evaluate
from ufork.eval.heldout import HeldoutLoss
from ufork.eval.pictures import write_picture
from ufork.eval.scenes.benchmark import ScenesBenchmark
from ufork.eval.scenes.config import EmojiBenchmarkConfig, ScenesBenchmarkConfig
from ufork.eval.scenes.emoji import EmojiBenchmark
from ufork.report import page
from ufork.report.charts import Curve, confusion_chart, line_chart, nice_ticks, short_number
from ufork.report.run_record import ReportError, read_run
from ufork.report.run_report import MAX_FRAMES, write_report

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
        self.scripts = 0

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attributes)
        self.loaded += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    tags = Tags()
    tags.feed(path.read_text(encoding="utf-8"))
    assert tags.open == []
    return tags, " ".join(tags.text)


def write_phase(folder, phase, entries, drawings=()):
    target = folder / "phases" / phase
    target.mkdir(parents=True)
    (target / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
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
    measured = {"cosine/all": 0.2, "cosine/layers.0": -0.1, "cosine/layers.1": 0.4, "cosine/layers.*.mlp.up.weight": 0}
    (folder / "phases" / "after" / "probes").mkdir()
    (folder / "phases" / "after" / "probes" / "gradient_conflict.jsonl").write_text(
        "".join(json.dumps({"step": step, **measured}) + "\n" for step in (10, 20))
    )
    write_phase(folder, "together", [metrics(30, gradient_norm=float("nan")), metrics(40)])
    heldout = sources / "heldout"
    write_codes_source(folder / "codes", num_samples=3)
    benchmarks = [
        ScenesBenchmark(heldout, ScenesBenchmarkConfig(questions_per_skill=4, drawings_per_skill=3), detector),
        EmojiBenchmark(heldout, EmojiBenchmarkConfig(questions=6, drawings=5)),
        HeldoutLoss([folder / "codes"], HeldoutConfig()),
    ]
    config = EvaluateConfig(examples_per_group=2)
    record = evaluate(Guessing(), benchmarks, config, folder=folder / "evaluation", checkpoint="weights", weights_id="")
    record.save(folder / "evaluation.json")
    (folder / "phases" / "after" / "bubble.json").write_text('{"trunk": 0.25}')
    write_picture(np.zeros((8, 8, 3), np.uint8), folder / "phases" / "after" / "pipeline.png")
    write_report(folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run that a test may damage."""
    return shutil.copytree(run, tmp_path / "copy")


def test_page_is_well_formed_and_loads_nothing(run):
    tags, _ = read(run / "report.html")
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in tags.loaded)
    text = (run / "report.html").read_text()
    assert "<script" not in text and "url(" not in text and "@import" not in text
    assert not re.findall(r"https?://(?!www\.w3\.org)", text)


def test_every_section_is_present(run):
    _, text = read(run / "report.html")
    for heading in ("Scenes", "Drawings", "Answers", "Scores", "Confusion", "Emoji", "Held-out loss"):
        assert heading in text
    for heading in ("Training", "While it trained", "A step of the pipeline", "Setup"):
        assert heading in text
    for detail in (
        "tiny <run>",
        "Attribute binding",
        "Mean over groups",
        "2.13.0",
        "Shapes & friends, CC0",
        "trunk 25%",
        "gradients, all shared parameters",
        "gradients, last layer of the trunk",
    ):
        assert detail in text
    assert "nats per image code" in text and "Damaged files" not in text
    pictures = (run / "report.html").read_text().count("data:image/png")
    scenes, emoji = 6 * 2 * (1 + 2), 6 + 2 * 2
    assert pictures == scenes + emoji + MAX_FRAMES + 1


def test_phases_are_in_the_recipes_order(run):
    assert [phase.name for phase in read_run(run).phases] == ["together", "after"]


def test_numbers_that_are_not_finite_are_skipped(run):
    together, after = read_run(run).phases
    assert "gradient_norm" not in together.metrics[0]
    assert (together.steps, together.seconds, after.drawings[0][0], after.drawings[-1][0]) == (40, 4.0, 1, 19)


def test_right_and_wrong_are_marked_without_relying_on_colour(run):
    _, text = read(run / "report.html")
    assert "✓" in text and "✗" in text


def test_unfinished_run_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: young}")
    _, text = read(write_report(tmp_path))
    assert "not evaluated yet" in text and "Confusion" not in text


def test_line_cut_off_by_a_kill_is_skipped_and_other_damage_is_named(tmp_path):
    write_phase(tmp_path, "only", [metrics(10)])
    path = tmp_path / "phases" / "only" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2')
    record = read_run(tmp_path)
    assert [entry["step"] for entry in record.phases[0].metrics] == [10] and not record.faults
    path.write_text('{"step": 2\n' + path.read_text())
    record = read_run(tmp_path)
    assert [entry["step"] for entry in record.phases[0].metrics] == [10]
    (fault,) = record.faults
    assert "metrics.jsonl" in fault and "1 " in fault


def test_missing_example_is_named_not_fatal(copy):
    example = sorted((copy / "evaluation" / "scenes").glob("*-reference.png"))[0]
    example.unlink()
    _, text = read(write_report(copy))
    assert f"{example.name} is missing" in text


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[3]"])
@pytest.mark.parametrize(
    "file",
    ["evaluation.json", "versions.json", "config.yaml", "phases/after/metrics.jsonl", "phases/after/bubble.json"],
)
def test_damaged_file_is_named_on_the_page(copy, file, content):
    (copy / file).write_bytes(content + b"\n")
    _, text = read(write_report(copy))
    assert "Damaged files" in text and file in text and "While it trained" in text


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
@pytest.mark.parametrize("file", ["evaluation.json", "versions.json", "phases/after/metrics.jsonl"])
def test_a_file_that_is_not_regular_is_named_on_the_page(copy, file, kind):
    (copy / file).unlink()
    if kind == "folder":
        (copy / file).mkdir()
    elif kind == "pipe":
        os.mkfifo(copy / file)
    else:
        (copy / file).symlink_to(copy / file)
    _, text = read(write_report(copy))
    assert (kind == "loop" or "Damaged files" in text) and "Setup" in text


def examples_of(folder):
    values = json.loads((folder / "evaluation.json").read_text())
    return values, values["benchmarks"][0]["examples"]


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "scenes/../../secret.png", "\0", "scenes/x.png"])
def test_a_picture_that_an_evaluation_may_not_name_is_refused(copy, name):
    write_picture(np.zeros((4, 4, 3), np.uint8), copy.parent / "secret.png")
    values, examples = examples_of(copy)
    examples[0]["picture"] = name
    (copy / "evaluation.json").write_text(json.dumps(values))
    _, text = read(write_report(copy))
    assert "Damaged files" in text and "evaluation.json" in text


def test_a_phase_whose_name_is_no_text_is_shown(copy):
    os.rename(copy / "phases" / "after", os.fsdecode(os.fsencode(copy / "phases") + b"/\xff"))
    assert "\\udcff" in write_report(copy).read_text()


def test_pictures_of_a_page_are_bounded_together(copy, monkeypatch):
    pictures = sorted((copy / "evaluation").rglob("*.png"))
    monkeypatch.setattr(page, "MAX_PICTURES_BYTES", pictures[0].stat().st_size + 1)
    embedded = page.Pictures(copy)
    assert embedded.url(pictures[0]) and not embedded.url(pictures[0])


def test_an_evaluation_of_countless_names_and_examples_is_reported_soon(copy):
    """Its confusion has 25 million cells."""
    record = json.loads((copy / "evaluation.json").read_text())
    names = [f"name{number}" for number in range(5000)]
    table = record["benchmarks"][0]["tables"][0]
    next(iter(table["groups"].values()))["confusion"] = {name: {name: 1} for name in names}
    record["benchmarks"][0]["examples"] *= 100
    (copy / "evaluation.json").write_text(json.dumps(record))
    began = time.monotonic()
    assert "name4999" not in write_report(copy).read_text()
    assert time.monotonic() < began + 10


def test_a_link_out_of_the_run_is_not_followed(copy):
    write_picture(np.zeros((4, 4, 3), np.uint8), copy.parent / "secret.png")
    _, examples = examples_of(copy)
    before = write_report(copy).read_text().count("data:image/png")
    picture = copy / "evaluation" / examples[0]["picture"]
    picture.unlink()
    picture.symlink_to(copy.parent / "secret.png")
    page = write_report(copy).read_text()
    assert page.count("data:image/png") == before - 1 and f"{examples[0]['picture']} is missing" in page


def test_untrusted_text_is_escaped(copy):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    values, examples = examples_of(copy)
    examples[0] |= {"text": evil, "answer": evil, "expected": evil, "note": evil, "right": False, "group": evil}
    for table in values["benchmarks"][0]["tables"]:
        table |= {"title": evil, "measure": evil, "groups": {evil: next(iter(table["groups"].values()))}}
        table["groups"][evil]["confusion"] = {evil: {evil: 3, "x" + evil: 1}}
    values["benchmarks"][0] |= {"title": evil, "description": evil, "num_skipped": 1, "skipped": [evil]}
    values["benchmarks"][0]["figures"] = [{"label": evil, "value": evil, "note": evil}]
    (copy / "evaluation.json").write_text(json.dumps(values))
    (copy / "versions.json").write_text(json.dumps({evil: evil}))
    (copy / "shards" / "ATTRIBUTION.md").write_text(evil)
    (copy / "config.yaml").write_text(f"run: {{name: {json.dumps(evil)}}}")
    (copy / "phases" / "after").rename(copy / "phases" / "<script>alert(2)")
    tags, text = read(write_report(copy))
    assert tags.scripts == 0 and evil in text and "49" not in tags.loaded
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in tags.loaded)


FILES = ["evaluation.json", "versions.json", "phases/after/metrics.jsonl", "phases/after/bubble.json"]


def mutated(value, data):
    """`value` with one of its nodes replaced, removed or renamed."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        if data.draw(st.integers(0, 5)) == 0:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: mutated(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], mutated(value[index], data), *value[index + 1 :]]
    numbers = st.floats() | st.integers(-(10**400), 10**400) | st.sampled_from([0, -1, 1e308, 10**30, 5e-324])
    return data.draw(st.none() | st.booleans() | numbers | st.text(max_size=9) | st.just([]) | st.just({"a": [1]}))


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FILES), st.data())
def test_no_content_of_a_runs_files_makes_its_report_fail(run, tmp_path_factory, file, data):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    if not folder.exists():
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.png"))
    for name in FILES:
        shutil.copy(run / name, folder / name)
    text = (run / file).read_text()
    values = [json.loads(line) for line in text.splitlines()] if file.endswith("jsonl") else [json.loads(text)]
    changed = [mutated(value, data) for value in values]
    (folder / file).write_text("".join(json.dumps(value) + "\n" for value in changed))
    _, shown = read(write_report(folder))
    assert "Setup" in shown


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
    svg = line_chart(curves, label="a & b", colour="ink", from_zero=from_zero and min(y for _, y in points) >= 0)
    read_points = re.search(r'polyline class="curve" points="([^"]*)"', svg).group(1)
    pairs = np.array([pair.split(",") for pair in read_points.split()], float)
    assert len(pairs) <= 240
    assert (pairs >= 0).all() and (pairs[:, 0] <= 480).all() and (pairs[:, 1] <= 220).all()
    assert "<two>" not in svg


def test_the_confusion_chart_omits_answers_that_never_occurred():
    svg = confusion_chart({"one": {"one": 3, "other": 1}, "two": {}, "three": {"one": 2}}, label="counts")
    assert ">two<" not in svg
    assert svg.count("<rect") == 2 * 3
    assert 'class="right"' in svg and "three, answered one: 2" in svg


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 3), (-2, -2), (-5e-324, 5e-324), (1e6, 1e6 + 1e-9)])
def test_an_empty_range_has_two_ticks(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] < ticks[-1] and len(ticks) <= 8
