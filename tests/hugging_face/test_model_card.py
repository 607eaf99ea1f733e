"""What the model card and the config take from the run."""

import json
import shutil

import markdown_it
import pytest
import yaml

from tests.hugging_face.exported import save_weights
from tests.tiny import tiny_config
from ufork.eval.record import BenchmarkRecord, Evaluation, GroupScore, ScoreTable
from ufork.hugging_face.export import export
from ufork.run_folder import RunFolder
from ufork.vocabulary import Task

SCORES = ScoreTable(
    task=Task.UNDERSTANDING,
    title="Answers",
    measure="right",
    groups={"left_of": GroupScore(score=0.75, num_cases=8, chance=0.5)},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two phases, in an order that is not that of their names."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    for name in ("joint", "final"):
        phase = run.phase(name)
        save_weights(phase.weights, tiny_config())
        phase.metrics.write_text(json.dumps({"step": 7, "seconds": 3.2, "loss/understanding": 1.25}) + "\n")
    phases = {"joint": {"data": {"seq_len": 55}}, "final": {"data": {"seq_len": 66}}}
    run.config.write_text(yaml.safe_dump({"run": {"name": "tiny"}, "phases": phases}, sort_keys=False))
    run.versions.write_text(json.dumps({"ufork": "0.0.9", "torch": "2.13.0"}))
    benchmark = dict(name="scenes", title="Scenes", description="", figures=[], examples=[], num_cases=8)
    record = BenchmarkRecord(tables=[SCORES], num_skipped=0, skipped=[], **benchmark)
    Evaluation(checkpoint="phases/final/weights", benchmarks=[record], seconds=1.0).save(run.evaluation)
    run.shards.mkdir()
    (run.shards / "ATTRIBUTION.md").write_text("# Whose work\n\n## scenes (CC-BY-4.0)\n\nMade by someone.\n")
    return run


def test_the_card_has_phases_scores_data_recipe_and_versions(run, tmp_path):
    export(run.path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Phase `final` of the run `tiny`" in card
    assert "| final | 7 | 3 | understanding 1.2500 |" in card
    assert "| Scenes: answers | right | left of | 0.750 | 0.500 | 8 |" in card
    assert "### scenes (CC-BY-4.0)\n\nMade by someone." in card
    assert "seq_len: 55" in card and "torch 2.13.0" in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "transformers" and "license" not in metadata


def test_text_of_others_is_shown_as_text(run, tmp_path):
    """Row M7: names, scores and attributions are not read as Markdown or HTML."""
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "runs" / "copy"))
    hostile = "`<img src=x onerror=alert(1)> ![a](http://x) [b](javascript:1)\n# Heading | cell"
    record = json.loads(copy.evaluation.read_text())
    record["checkpoint"] = record["benchmarks"][0]["title"] = hostile
    copy.evaluation.write_text(json.dumps(record))
    copy.config.write_text(copy.config.read_text() + f"# ```\n# {hostile.splitlines()[0]}\n")
    (copy.shards / "ATTRIBUTION.md").write_text(f"# Whose\n\n## {hostile}\n\n{hostile}\n")
    export(copy.path, tmp_path / "out")
    _, _, card = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    page = markdown_it.MarkdownIt("commonmark").enable("table").render(card)
    assert "<img" not in page and page.count("<a ") == 1, "only the link to the paper"
    assert "&lt;img src=x onerror=alert(1)&gt; ![a](http://x) [b](javascript:1)" in page
    assert page.count("<h1>") == 1 and page.count("<pre>") == 2


def test_the_phase_can_be_chosen_and_its_sequences_bound_the_text(run, tmp_path):
    for phase, length in (("joint", 55), (None, 66)):
        export(run.path, tmp_path / str(phase), phase=phase, task=Task.UNDERSTANDING)
        config = json.loads((tmp_path / str(phase) / "config.json").read_text())
        assert config["max_position_embeddings"] == length
    assert "AutoModelForCausalLM" in (tmp_path / "joint" / "README.md").read_text()


def test_weights_outside_a_run_have_a_card_without_training(tmp_path):
    export(save_weights(tmp_path / "weights", tiny_config()), tmp_path / "out")
    assert "## Training" not in (tmp_path / "out" / "README.md").read_text()
