"""Trials run in processes, with verbs that only write the files that a suite reads."""

import io
import json
import os
import signal
import sys
import threading
import time

import pytest

from pipelines.ablation import run as suite_run
from pipelines.ablation.outcome import missing_trials, results_of
from pipelines.ablation.run import SuiteRun, TrialsFailedError
from pipelines.ablation.shared_data import VERBS, prepare_data, require_prepared
from pipelines.ablation.suite import read_suite
from pipelines.ablation.tables import FORK_DEPTH, LAYERS, LEARNING_CURVES, TABLE, write_tables
from pipelines.launch import verb_process
from tests.pipelines.ablation.tiny_suite import prepared_suite_file, suite_file
from ufork.errors import ConfigError, StoppedError
from ufork.eval.record import BenchmarkRecord, Evaluation, GroupScore, ScoreTable
from ufork.vocabulary import Task

PROGRAM = """
import json, os, pathlib, sys, time
verb, recipe = sys.argv[1], pathlib.Path(sys.argv[-1])
run = recipe.parent
(run / "ran").open("a").write(" ".join(sys.argv[1:-1]) + f" {os.environ.get('OMP_NUM_THREADS')}\\n")
if (run / "slow").exists():
    print("ready", flush=True)
    time.sleep(60)
if (run / "fails").exists():
    print(f"ufork {verb}: broken", file=sys.stderr)
    sys.exit(3)
if verb == "train":
    phase = run / "phases/joint"
    phase.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "seconds": step / 2, "loss/generation": 9 / step} for step in range(1, 201)]
    lines.append({"step": 201, "seconds": 101, "loss/generation": float("nan")})
    (phase / "probes").mkdir(exist_ok=True)
    measured = {"phase": "joint", "step": 100, "cka/generation/layers.1": 0.123456}
    (phase / "probes/alignment.jsonl").write_text(json.dumps(measured) + "\\n")
    (phase / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
else:
    (run / "evaluation.json").write_text((run.parent / "evaluation.json").read_text())
"""


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    command = [sys.executable, "-c", PROGRAM]
    monkeypatch.setattr(suite_run, "verb_command", lambda arguments: [*command, *arguments])
    monkeypatch.setattr(verb_process, "POLL_SECONDS", 0.02)


@pytest.fixture
def suite(tmp_path):
    suite = read_suite(prepared_suite_file(tmp_path))
    groups = {"tiny": GroupScore(score=1.5, num_cases=4)}
    table = ScoreTable(task=Task.GENERATION, title="generation", measure="nats", is_share=False, groups=groups)
    record = dict(title="", description="", figures=[], examples=[], num_cases=4, num_skipped=0, skipped=[])
    benchmark = BenchmarkRecord(name="heldout", tables=[table], **record)
    Evaluation(checkpoint="", benchmarks=[benchmark], seconds=1.0).save(suite.folder / "evaluation.json")
    return suite


def start(suite, *, parallel=2):
    return SuiteRun(suite, results=suite.results, parallel=parallel, environment=os.environ, out=io.StringIO())


def ran(suite, name):
    path = suite.folder / name / "ran"
    return [line.rpartition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_every_trial_is_trained_and_evaluated_and_leaves_a_result(suite):
    start(suite).run(suite.trials)
    assert missing_trials(suite, suite.results) == []
    assert ran(suite, "y-seed1") == ["train --ranks 1", "evaluate"]
    result = results_of(suite, suite.results)[3]
    assert (result.arm, result.seed, result.values_by_score) == ("y", 1, {"heldout/generation": 1.5})
    assert result.recipe["run"] == {"name": "y-seed1", "seed": 1} and "demo" not in result.recipe
    assert result.steps == 201 and result.seconds == {"train": 101, "evaluate": 1.0}
    curve = result.curves[Task.GENERATION]
    assert result.curves.keys() == {Task.GENERATION}
    assert len(curve.steps) <= 64 and curve.steps[-1] == 200, "the loss that is no number is left out"
    assert result.probes == {"alignment": [{"step": 100, "cka/generation/layers.1": 0.1235}]}


def test_trials_read_the_shared_data(suite):
    start(suite).run(suite.trials[:1])
    run = suite.trials[0].recipe.run_folder
    assert (run.codes / "tiny" / "train" / "manifest.json").is_file() and run.text_tokenizer.is_dir()
    (run.detector / "words.json").write_text("{}")
    assert (suite.folder / "data/detector/words.json").is_file()


def test_parallel_trials_share_the_cores(suite, monkeypatch):
    monkeypatch.setattr(suite_run, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    start(suite, parallel=4).run(suite.trials[:1])
    assert (suite.folder / "shared-seed0/ran").read_text().splitlines()[0].endswith(" 2")


def test_a_trial_that_fails_keeps_no_other_from_running(suite):
    (suite.folder / "shared-seed1").mkdir()
    (suite.folder / "shared-seed1/fails").touch()
    with pytest.raises(TrialsFailedError) as failed:
        start(suite).run(suite.trials)
    assert failed.value.exit_code == 3
    assert str(failed.value).startswith(
        "1 of 4 trials failed\nshared-seed1: train failed with exit code 3; its log is "
    )
    assert [trial.name for trial in missing_trials(suite, suite.results)] == ["shared-seed1"]


def wait_for(ready):
    deadline = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stop_signal_stops_all_verbs_and_the_next_start_resumes(suite):
    for name in ("shared-seed1", "y-seed0"):
        (suite.folder / name).mkdir()
        (suite.folder / name / "slow").touch()
    logs = [suite.folder / name / "logs/train.log" for name in ("shared-seed1", "y-seed0")]

    def stop():
        wait_for(lambda: all(log.exists() and "ready" in log.read_text() for log in logs))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(StoppedError, match="the same command resumes"):
        start(suite).run(suite.trials)
    assert ran(suite, "y-seed1") == [], "no further trial is begun"
    for name in ("shared-seed1", "y-seed0"):
        (suite.folder / name / "slow").unlink()
    missing = missing_trials(suite, suite.results)
    assert [trial.name for trial in missing] == ["shared-seed1", "y-seed0", "y-seed1"]
    start(suite).run(missing)
    assert missing_trials(suite, suite.results) == []
    assert ran(suite, "shared-seed0") == ["train --ranks 1", "evaluate"], "not run again"


def test_results_and_folders_of_another_recipe_are_refused(suite, tmp_path):
    start(suite).run(suite.trials[:1])
    changed = read_suite(tmp_path / "tiny.yaml", ["train.learning_rate=0.7"])
    path = suite.results / "shared-seed0.json"
    with pytest.raises(ConfigError, match=rf"{path}: .*train.learning_rate was 0.3, is 0.7.* remove the file"):
        missing_trials(changed, suite.results)
    path.unlink()
    with pytest.raises(TrialsFailedError, match=r"shared-seed0: was begun with another recipe .*remove this folder"):
        start(changed).run(missing_trials(changed, suite.results)[:1])


def test_data_is_made_once(tmp_path):
    suite = read_suite(suite_file(tmp_path))
    with pytest.raises(ConfigError, match="--prepare"):
        require_prepared(suite)
    verbs = []
    for _ in range(2):
        prepare_data(suite, lambda run, *verb: verbs.append((run.path.name, verb)))
    assert verbs == [("data", verb) for verb in VERBS]
    require_prepared(suite)
    other = read_suite(tmp_path / "tiny.yaml", ["text.vocab_size=500"])
    with pytest.raises(ConfigError, match="--prepare"):
        require_prepared(other)


def test_data_that_was_interrupted_is_not_taken_for_finished(tmp_path):
    suite = read_suite(suite_file(tmp_path))

    def fails(run, *verb):
        raise StoppedError(verb[0])

    with pytest.raises(StoppedError):
        prepare_data(suite, fails)
    with pytest.raises(ConfigError, match="--prepare"):
        require_prepared(suite)


def test_tables_and_figures_are_written_beside_the_results(suite):
    start(suite).run(suite.trials)
    text = write_tables(suite, results_of(suite, suite.results), suite.results)
    assert (suite.results / TABLE).read_text() == text and "## Difference from shared" in text
    assert all((suite.results / name).is_file() for name in (LEARNING_CURVES, FORK_DEPTH, LAYERS))


def test_a_result_file_can_be_read_by_people(suite):
    start(suite).run(suite.trials[:1])
    stored = json.loads((suite.results / "shared-seed0.json").read_text())
    assert stored["values"] == {"model.trunk_layers": 2, "model.understanding_layers": 0, "model.generation_layers": 0}
    assert stored["machine"] and stored["versions"]["torch"]
