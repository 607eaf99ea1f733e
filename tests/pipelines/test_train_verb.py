"""`ufork train` on one rank and on two, then drawing and answering with the weights that it left."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from pipelines import cli
from tests.tiny_run import make_run, train


def losses(run, phase):
    lines = run.phase(phase).metrics.read_text().splitlines()
    return [[value for key, value in json.loads(line).items() if key.startswith("loss/")] for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe, run = make_run(tmp_path_factory.mktemp("runs"), "one")
    train(recipe)
    return recipe, run


@pytest.mark.slow
def test_phases_leave_metrics_drawings_and_the_resolved_config(trained):
    _, run = trained
    assert len(losses(run, "align")) == len(losses(run, "all")) == 4
    assert sorted(path.name for path in run.phase("all").drawings.iterdir()) == [
        "step-000002.png",
        "step-000004.png",
    ]
    config = yaml.safe_load(run.config.read_text())
    assert config["phases"]["align"]["train"]["learning_rate"] == 0.3
    assert "torch" in json.loads(run.versions.read_text())


@pytest.mark.slow
def test_two_ranks_train_as_one(trained, tmp_path):
    recipe, run = make_run(tmp_path, "two")
    train(recipe, "--ranks", "2")
    for phase in ("align", "all"):
        assert np.allclose(losses(run, phase), losses(trained[1], phase), atol=1e-5)


FORKED = ("layout={kind: forked, trunk: {tp: 2}}", "phases.generation.train.trainable=[generation]")
"""A layout, and a last phase without understanding, whose ranks idle and whose weights do not change."""


@pytest.mark.slow
def test_a_forked_layout_trains_as_one_rank(tmp_path):
    outcomes = []
    for name, layout in (("one", []), ("forked", [FORKED[0]])):
        recipe, run = make_run(tmp_path, name)
        batch = "phases.generation.train.global_batch_size={understanding: 0, generation: 2}"
        train(recipe, *layout, FORKED[1], batch, "--trace")
        outcomes.append((run, load_file(run.phase("generation").weights / "model.safetensors")))
    (one, weights), (forked, forked_weights) = outcomes
    for phase in ("align", "all", "generation"):
        assert np.allclose(losses(forked, phase), losses(one, phase), atol=1e-5)
    assert weights.keys() == forked_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(forked_weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    traces_show_every_pass_once(forked, {"align": (0, 1, 2, 3), "all": (0, 1, 2, 3), "generation": (0, 1, 3)})
    assert set(json.loads((one.phase("all").path / "bubble.json").read_text())) == {"colocated"}


def traces_show_every_pass_once(run, ranks_by_phase):
    for phase, ranks in ranks_by_phase.items():
        events = json.loads((run.phase(phase).path / "trace.json").read_text())["traceEvents"]
        assert {event["pid"] for event in events} == set(ranks)
        tasks = [task for task in ("understanding", "generation") if phase != "generation" or task == phase]
        for rank in ranks:
            seen = sorted(event["name"] for event in events if event["pid"] == rank and event.get("cat") == "forward")
            mine = tasks if rank < 2 else [["understanding"], ["generation"]][rank - 2]
            assert seen == sorted(f"{task} {index}" for task in mine for index in range(2)), (phase, rank)
        assert Image.open(run.phase(phase).path / "pipeline.png").size[0] > 1000


@pytest.mark.slow
def test_one_phase_starts_from_the_one_before(trained, tmp_path):
    before = losses(trained[1], "all")
    train(trained[0], "--phase", "all")
    assert losses(trained[1], "all") == before


@pytest.mark.slow
def test_the_trained_weights_draw_and_answer(trained, tmp_path, capsys):
    checkpoint = str(trained[1].phase("all").weights)
    out = tmp_path / "grid.png"
    prompts = ["--prompt", "a dog", "--prompt", "a cat"]
    assert cli.main(["draw", "--checkpoint", checkpoint, *prompts, "--out", str(out), "--top-k", "5"]) == 0
    assert Image.open(out).size == (2 * 16 + 6, 16 + 4)
    questions = ["--question", "what is this?", "--question", "how many?"]
    assert cli.main(["answer", "--checkpoint", checkpoint, "--image", str(out), *questions]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def refused(capsys, *arguments):
    """Returns the error of a command that must not begin to train."""
    assert cli.main(list(map(str, arguments))) != 0
    return capsys.readouterr().err


def test_unknown_phase_names_the_known_ones(tmp_path, capsys):
    recipe, _ = make_run(tmp_path, "run")
    assert "--phase al: the recipe's phases are align, all" in refused(capsys, "train", recipe, "--phase", "al")


def test_a_layout_of_another_size_is_refused_with_the_arithmetic(tmp_path, capsys):
    recipe, _ = make_run(tmp_path, "run")
    said = refused(capsys, "train", recipe, "layout={kind: forked, trunk: {tp: 2}}", "--ranks", 3)
    assert "trunk 2x1 + understanding 1x1 + generation 1x1 = 4 ranks, the job has 3" in said


def test_no_phase_and_no_rank_are_refused(tmp_path, capsys):
    recipe, _ = make_run(tmp_path, "run")
    assert "phases: the recipe has none" in refused(capsys, "train", recipe, "phases={}")
    assert "--ranks 0" in refused(capsys, "train", recipe, "--ranks", 0)


def test_a_run_that_is_not_there_is_named_and_not_made(tmp_path, capsys, monkeypatch):
    recipe, _ = make_run(tmp_path, "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said = refused(capsys, "train", recipe, "run.folder=runs")
    assert f"there is no folder {tmp_path}/elsewhere/runs/run" in said
    assert not list((tmp_path / "elsewhere").iterdir())


def test_missing_weights_and_images_are_named(tmp_path, capsys):
    shown = refused(capsys, "draw", "--checkpoint", tmp_path, "--prompt", "a dog", "--out", tmp_path / "x.png")
    assert f"{tmp_path}: no model.safetensors" in shown
    shown = refused(capsys, "answer", "--checkpoint", tmp_path, "--image", tmp_path / "x.png", "--question", "what?")
    assert "x.png: cannot be read" in shown
