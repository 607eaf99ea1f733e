"""`ufork demo` is killed, interrupted and resumed on a small recipe; `ufork verify` judges what came out."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from pipelines import cli
from pipelines.launch.verb_process import cpu_seconds_of_session
from pipelines.recipe import read_recipe
from tests.pipelines.test_all_verbs import RECIPE

INTERRUPTED = 130


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    file = folder / "tiny.yaml"
    recipe = {
        **RECIPE,
        "run": {"name": "tiny", "folder": str(folder)},
        "vision": {
            **RECIPE["vision"],
            "fit": {"steps": 5, "batch_images": 16, "start_batches": 2, "codebook_rounds": 2},
        },
        "train": {
            **RECIPE["train"],
            "log_every_steps": 1,
            "draw_every_steps": 0,
            "wandb": {"mode": "disabled"},
            "checkpoint": {"every_steps": 5},
        },
        "phases": {"joint": {"train": {"steps": 400}}},
        "demo": {"machines": [{"name": "any", "expect": {"answers": 1.0}}]},
    }
    file.write_text(yaml.safe_dump(recipe))
    return file


def start(path, *overrides):
    command = [sys.executable, "-m", "pipelines.cli", "demo", str(path), *overrides]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells' background jobs ignore it
    )


def wait_for_step(folder, step):
    metrics, deadline = folder.phase("joint").metrics, time.monotonic() + 240
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert time.monotonic() < deadline, f"no step {step}"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_demo_is_killed_interrupted_and_resumed(path):
    folder = read_recipe(path).run_folder
    killed = start(path)
    wait_for_step(folder, 16)  # when the checkpoint of step 5 or 10, at least, is complete
    (child,) = children_of(killed.pid)
    killed.kill()
    killed.communicate()
    deadline = time.monotonic() + 20
    while cpu_seconds_of_session(child):
        assert time.monotonic() < deadline, "verbs of a killed demo go on"
        time.sleep(0.1)

    interrupted = start(path)
    wait_for_step(folder, 30)
    interrupted.send_signal(signal.SIGINT)
    shown, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode == INTERRUPTED and errors == "ufork demo: interrupted\n"
    assert shown.endswith("stopped in train; the same command resumes the run\n")
    log = (folder.logs / "train.log").read_text()
    assert "resumed: " in log and "stopped by a signal after step" in log

    last = start(path, "phases.joint.train.steps=40")
    shown, errors = last.communicate(timeout=240)
    assert last.returncode == 0, errors
    assert "variant any, as at its first start" in shown and "[7/7]" in shown
    assert "answers" in shown and "lower than expected: answers" in shown and str(folder.report) in shown
    assert json.loads(folder.demo.read_text())["finished"][-1] == "report"


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.slow
def test_a_verb_that_fails_ends_the_demo_with_its_exit_code(path):
    failed = start(path, "run.name=failing", "prepare.scenes=null", "prepare.emoji=null")
    shown, errors = failed.communicate(timeout=120)
    assert failed.returncode == 1
    assert errors.startswith("ufork demo: tokenizer text failed with exit code 1; its log is ")
    assert "  ufork tokenizer: " in errors and "no finished source; run `ufork prepare` first" in errors


@pytest.mark.slow
@pytest.mark.parametrize(("answers", "code"), [((-1.0, 0.0, 1.0), 0), ((0.97, 0.98, 0.99), 1)])
def test_verify_says_whether_a_run_came_out_as_recorded(path, tmp_path, capsys, answers, code):
    """On the run that the first test has finished, as a verification that was interrupted at its end would be."""
    folder = read_recipe(path).run_folder
    runs = [{"seed": 0, "minutes": 1.0, "answers": answer} for answer in answers]
    measured = [{"machine": "any", "hardware": "any", "runs": runs}]
    recorded = tmp_path / "recorded.yaml"
    recorded.write_text(yaml.safe_dump({"recipes": [{"recipe": "tiny.yaml", "command": "-", "measured": measured}]}))
    given = path.with_name(f"given-{code}") / "tiny.yaml"
    given.parent.mkdir()
    given.write_text(path.read_text().replace("steps: 400", "steps: 40"))
    assert cli.main(["verify", str(given), "run.name=tiny", "--recorded", str(recorded)]) == code
    shown = capsys.readouterr()
    text = shown.out if code == 0 else shown.err
    assert ("worse than recorded" in text) is (code == 1) and "not recorded" in text
    assert json.loads(folder.verification.read_text())["as_recorded"] is (code == 0)


def test_a_verified_recipe_is_run_as_it_is(path, capsys):
    assert cli.main(["verify", str(path), "train.steps=3"]) == 2
    assert "train.steps=3: a recipe is verified as it is" in capsys.readouterr().err
    assert cli.main(["verify", str(path)]) == 2
    assert "no results are recorded of it" in capsys.readouterr().err


def test_a_demo_takes_one_recipe_and_at_least_one_rank(path, capsys):
    assert cli.main(["demo", str(path), "other.yaml"]) == 2
    assert "expected one recipe" in capsys.readouterr().err
    assert cli.main(["demo", str(path), "--ranks", "0"]) == 2
    assert "--ranks 0" in capsys.readouterr().err
