"""A demo from its choice to its end, with verbs that end at once and a machine that is not measured."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.demo import run as demo_run
from pipelines.demo.run import Demo, Request
from pipelines.launch import verb_process
from pipelines.launch.verb_process import VerbFailedError
from tests.pipelines.demo.test_choice import machine
from tests.pipelines.demo.test_outcome import benchmark, trained
from tests.pipelines.test_all_verbs import RECIPE
from ufork.errors import ConfigError
from ufork.eval.record import Evaluation

ROOT = Path(__file__).parents[3]
MACHINES = [
    {"name": "fast", "least_gflops": 200, "values": ["train.steps=8"], "expect": {"answers": 0.4, "drawings": 0.6}},
    {"name": "slow", "seconds": {"train": 1000}, "pictures": "Whole sprites."},
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tiny.yaml"
    run = {"name": "tiny", "folder": str(tmp_path)}
    path.write_text(yaml.safe_dump({"run": run, **RECIPE, "demo": {"machines": MACHINES}}))
    return path


@pytest.fixture
def found(monkeypatch):
    """The machine that a probe finds, which tests replace."""
    machines = [machine(fp32=250)]
    monkeypatch.setattr(demo_run, "probe_machine", lambda folder: machines[-1])
    return machines


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """What the verbs were called with; `commands.fail` names the one that fails."""

    class Commands(list):
        fail = None

        def command(self, arguments):
            self.append(arguments)
            code = 3 if arguments[0] == self.fail else 0
            return [sys.executable, "-c", f"print('ufork x: at fault'); raise SystemExit({code})"]

    commands = Commands()
    monkeypatch.setattr(demo_run, "verb_command", commands.command)
    monkeypatch.setattr(verb_process, "POLL_SECONDS", 0.02)
    folder = tmp_path / "tiny"
    Evaluation(checkpoint="c", benchmarks=[benchmark("scenes", 0.6)], seconds=1).save(folder / "evaluation.json")
    return commands


def start(path, *overrides, environment=os.environ, **more):
    return Demo(Request(path=path, overrides=overrides, **more), environment=environment, out=io.StringIO())


def test_all_verbs_run_with_the_values_of_the_class_then_those_of_the_user(path, found, commands):
    demo = start(path, "train.log_every_steps=3")
    outcome = demo.run()
    values = [str(path), "train.steps=8", "train.precision=fp32", "train.log_every_steps=3"]
    assert commands == [
        ["prepare", *values],
        ["tokenizer", "text", *values],
        ["tokenizer", "fit", *values],
        ["tokenizer", "encode", *values],
        ["train", "--ranks", "1", *values],
        ["evaluate", *values],
        ["report", *values],
    ]
    assert outcome.scores == pytest.approx({"answers": 0.5, "drawings": 0.5}) and len(outcome.seconds) == 7


def test_the_start_says_what_was_found_how_long_it_takes_and_what_to_expect(path, found, commands):
    demo = start(path)
    demo.run()
    head = demo.out.getvalue().partition("[1/7]")[0]
    assert "2 cores (X), 250 GFLOP/s in fp32" in head and "variant fast, 1 rank, fp32" in head
    assert "about 18 min 58 s" in head and "answers at least 0.40, drawings at least 0.60" in head
    slow = start(path, machine_class="slow")
    slow.run()
    assert "Whole sprites." in slow.out.getvalue() and "about 20 min 38 s" in slow.out.getvalue()


def test_the_second_start_keeps_the_variant_whatever_the_machine_is_then(path, found, commands):
    start(path).run()
    found.append(machine(fp32=10, cores=1))
    again = start(path)
    assert again.choice.machine_class == "fast" and again.recipe.phases["joint"].train.steps == 8
    again.run()
    assert "variant fast, as at its first start" in again.out.getvalue()
    assert again.choice.machine.fp32_gflops == 250
    assert start(path, "run.name=other").choice.machine_class == "slow"
    assert start(path, machine_class="slow").choice.machine_class == "slow"


def test_times_are_those_of_all_starts_without_repeated_verbs(path, found, commands):
    commands.fail = "train"
    with pytest.raises(VerbFailedError):
        start(path).run()
    interrupted = json.loads((path.parent / "tiny/demo.json").read_text())
    assert interrupted["finished"] == ["prepare", "tokenizer text", "tokenizer fit", "tokenizer encode"]
    commands.fail = None
    seconds = start(path).run().seconds
    assert seconds["prepare"] == interrupted["seconds"]["prepare"]
    assert seconds["train"] > interrupted["seconds"]["train"]


def test_a_failing_verb_ends_the_demo_with_its_message_and_says_how_to_resume(path, found, commands):
    commands.fail = "evaluate"
    demo = start(path)
    with pytest.raises(VerbFailedError, match="evaluate failed with exit code 3; its log is .*\n  ufork x: at fault"):
        demo.run()
    assert [command[0] for command in commands][-1] == "evaluate"
    assert demo.out.getvalue().endswith("stopped in evaluate; the same command resumes the run\n")


def test_the_end_shows_scores_time_pictures_and_why_a_score_is_low(path, found, commands):
    demo = start(path)
    outcome = demo.run()
    trained(demo.recipe, "joint", 5, 1)
    shown = demo.describe(outcome)
    assert "answers     0.50  at least 0.40" in shown and "drawings    0.50  at least 0.60" in shown
    assert "lower than expected: drawings. The drawings do not follow their prompts" in shown
    assert "report.html" in shown and "ufork draw --checkpoint" in shown and "ufork answer" in shown
    slow = start(path, machine_class="slow")
    assert "lower than expected" not in slow.describe(outcome)


def test_a_recipe_that_cannot_train_on_the_ranks_is_refused_before_anything_runs(path, found, commands):
    with pytest.raises(ConfigError, match="on 2 ranks"):
        start(path, ranks=2)
    assert commands == []


def test_only_a_quota_limits_the_threads_of_the_verbs(path, found, commands, monkeypatch):
    found.append(machine(cores=6))
    demo = start(path, "train.global_batch_size={understanding: 2, generation: 2}", environment={"PATH": "/bin"})
    assert demo.choice.ranks == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    assert demo._environment_of(demo.verbs[0]) == {"PATH": "/bin"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    threads = {verb.name: demo._environment_of(verb)["OMP_NUM_THREADS"] for verb in demo.verbs}
    assert threads["train"] == "3" and threads["evaluate"] == "6"


@pytest.mark.parametrize(
    ("values", "command"),
    [
        ([], "ufork demo pipelines/recipes/demo.yaml"),
        (["RECIPE=x.yaml", "SET=a=1 b=2", "RANKS=4"], "ufork demo x.yaml a=1 b=2 --ranks 4"),
        (["LAYOUT=forked", "RANKS=4"], "ufork demo pipelines/recipes/demo.yaml layout.kind=forked"),
    ],
)
def test_the_makefile_runs_the_demo_with_its_variables(values, command):
    # below `make test`, make would also say which folder it enters and leaves
    shown = subprocess.run(
        ["make", "-n", "--no-print-directory", "demo", *values], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert command in " ".join(shown.splitlines()[-1].split())


def test_busy_cores_say_nothing_about_training_on_gpus_or_training_that_was_done_before(path, found, commands):
    assert start(path).run().training_cores is not None
    assert start(path).run().training_cores is None
    found.append(machine(num_gpus=1))
    other = start(path, machine_class="slow")
    assert other.run().training_cores is None
