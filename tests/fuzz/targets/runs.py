"""Recipes, suites, the files of a run, and what comparisons are made from."""

import json
import re
from pathlib import Path

import numpy as np
import torch
import yaml

from pipelines.ablation import suite
from pipelines.check_recipe import check_recipe
from pipelines.recipe import read_recipe
from pipelines.status.run_status import read_status
from pipelines.status.status_page import as_values, render
from tests.analysis.ablation.trials import measured
from tests.fuzz.mutations import Mutation, json_lines, json_text, safetensors
from tests.fuzz.targets.models import write_weights
from tests.fuzz.targets.target import Target
from tests.pipelines.status.test_run_status import add_events, make_run
from tests.tiny_run import RECIPE
from ufork.analysis.ablation.tables import ablation_tables
from ufork.analysis.ablation.trial_result import load_results
from ufork.eval.pictures import write_picture
from ufork.eval.scenes.detector import Detector, DetectorNetwork, DetectorWords
from ufork.hugging_face.model_card import model_card
from ufork.report.run_report import write_report

MARKUP = re.compile(r"(?<!\\)<script|(?<!\\)\]\(javascript")
"""What mutations put into texts, unescaped in Markdown."""


def write_recipe(folder: Path) -> None:
    """Writes a recipe, and a suite of two arms of it."""
    recipe = {"run": {"name": "one", "folder": "runs"}, **RECIPE}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "recipe.json").write_text(json.dumps(recipe))
    arms = {"name": "s", "recipe": "recipe.yaml", "arms": {"a": {}, "b": {"train.steps": 5}}, "seeds": [0, 1]}
    (folder / "suite.json").write_text(json.dumps(arms))


def read_recipes(folder: Path) -> None:
    """Reads the recipes as `ufork train` does before it starts, and writes the one that a run records."""
    for name in ("recipe.yaml", "recipe.json"):
        recipe = read_recipe(folder / name)
        check_recipe(recipe, 1)
        recipe.to_yaml().encode()


def read_suite(folder: Path) -> None:
    """Reads a suite and the recipes of its arms."""
    suite.read_suite(folder / "suite.json")


def write_run(folder: Path) -> None:
    """Writes what a run leaves that its report, its status and its model card show."""
    run = make_run(folder / "run")
    run.versions.write_text(json.dumps({"torch": "2"}))
    run.shards.mkdir()
    (run.shards / "ATTRIBUTION.md").write_text("# Whose\n\n## scenes (CC0)\n\nMade by someone.\n")
    phase = run.phase("all")
    (phase.path / "bubble.json").write_text('{"trunk": 0.25}')
    phase.probes.mkdir()
    phase.probe("gradient_conflict").write_text('{"step": 10, "cosine/all": 0.2}\n')
    phase.skipped_samples.mkdir()
    (phase.skipped_samples / "replica-000.jsonl").write_text('{"id": "a", "reason": "empty"}\n')
    write_picture(np.zeros((8, 8, 3), np.uint8), phase.drawing(10))
    example = {"task": "generation", "group": "left_of", "text": "a dog", "picture": f"scenes/{'0' * 16}-drawing.png"}
    confusion = {"dog": {"dog": 3, "cat": 1}, "cat": {"cat": 2}}
    group = {"score": 0.7, "num_cases": 8, "chance": 0.5, "ceiling": 0.9, "confusion": confusion}
    table = {"task": "understanding", "title": "Answers", "measure": "right", "groups": {"left_of": group}}
    benchmark = {"name": "scenes", "title": "Scenes", "description": "d", "tables": [table], "num_cases": 8}
    benchmark |= {"figures": [{"label": "l", "value": "1"}], "examples": [example], "num_skipped": 1, "skipped": ["s"]}
    run.evaluation.write_text(json.dumps({"version": 2, "checkpoint": "w", "benchmarks": [benchmark], "seconds": 1.0}))
    write_picture(np.zeros((8, 8, 3), np.uint8), run.examples / str(example["picture"]))
    score = {"score": 0.4, "null_mean": 0.1, "null_std": 0.1}
    layer = {"layer": 0, "stage": "input", "scores": dict.fromkeys(("mutual_neighbours", "cka", "probe"), score)}
    model = {"name": "m", "curves": [{"task": "generation", "layers": [layer]}]}
    alignment = {"version": 1, "data": ["d"], "text": "own", "settings": {}, "seconds": 1, "num_pairs": 3}
    run.alignment.mkdir()
    (run.alignment / "alignment.json").write_text(json.dumps({**alignment, "models": [model]}))
    add_events(run, {"event": "submitted", "time": 10}, {"event": "ended", "time": 20, "exit_code": 1})
    failures = run.job_failures(17, 0)
    failures.mkdir(parents=True)
    failure = {"failure": "data", "exception": "ShardError", "message": "m", "exit_code": 1, "rank": 0, "host": "h"}
    (failures / "0.json").write_text(json.dumps({**failure, "time": 20.0}))
    run.job_logs.mkdir(exist_ok=True)
    (run.job_logs / "17-0.log").write_text("== restart 0\nTraceback\nKeyError: 'x'\n")
    write_weights(phase.path)


def read_run(folder: Path) -> None:
    """Makes the report, the status and the model card: damaged files of a run end none of them."""
    page = write_report(folder / "run").read_text()
    assert "<script" not in page and "<i>" not in page.replace('<i class="', "") and page.count("<html") == 1
    status = read_status(folder / "run", {"PATH": ""})
    assert all(line.isprintable() for line in render(status).splitlines())
    json.dumps(as_values(status))
    config = {"model_type": "unifork", "tasks": ["generation"], "dtype": "float32"}
    card = model_card(folder / "run/phases/all/weights", config=config, task=None, plan={})
    assert not MARKUP.search(card.partition("## Recipe")[0])


RUN_FILES: dict[str, Mutation | None] = {
    "config.yaml": None,
    "versions.json": json_text,
    "shards/ATTRIBUTION.md": None,
    "evaluation.json": json_text,
    "alignment/alignment.json": json_text,
    "slurm/jobs.jsonl": json_lines,
    "slurm/failures/17.0/0.json": json_text,
    "slurm/logs/17-0.log": None,
    "phases/all/metrics.jsonl": json_lines,
    "phases/all/bubble.json": json_text,
    "phases/all/probes/gradient_conflict.jsonl": json_lines,
    "phases/all/skipped_samples/replica-000.jsonl": json_lines,
}


def write_results(folder: Path) -> None:
    """Writes what comparisons are made from: results of trials, and the detector that scores drawings."""
    for seed in (0, 1):
        for arm in ("a", "b"):
            measured(arm, seed).save(folder)
    words = DetectorWords(
        kinds=("dog", "cat"),
        colours=("red",),
        backgrounds=("white",),
        image_px=32,
        spacing_cells=2,
        width=8,
        presence_threshold=0.5,
    )
    torch.manual_seed(0)
    Detector(DetectorNetwork(words), words).save(folder / "detector")


def read_results(folder: Path) -> None:
    """Makes the tables of the results."""
    results = load_results(folder, ["a", "b"], [0, 1])
    page = ablation_tables("s", results, num_trials=4, baselines=["a"])
    assert not MARKUP.search(page)


def read_detector(folder: Path) -> None:
    """Looks for objects with the detector."""
    detector = Detector.load(folder / "detector")
    detector.detect(np.zeros((1, detector.words.image_px, detector.words.image_px, 3), np.uint8))


RUNS: dict[str, Target] = {
    "recipe": Target(write=write_recipe, files={"recipe.yaml": None, "recipe.json": json_text}, read=read_recipes),
    "suite": Target(write=write_recipe, files={"suite.json": json_text, "recipe.yaml": None}, read=read_suite),
    "run": Target(
        write=write_run, files={f"run/{name}": structure for name, structure in RUN_FILES.items()}, read=read_run
    ),
    "trial result": Target(write=write_results, files={"a-seed0.json": json_text}, read=read_results),
    "detector": Target(
        write=write_results,
        files={"detector/words.json": json_text, "detector/detector.safetensors": safetensors},
        read=read_detector,
    ),
}
