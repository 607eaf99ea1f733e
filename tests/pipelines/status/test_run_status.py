"""Where a run is, by what it leaves: with and without Slurm, whole and damaged."""

import json
import os
import time

import pytest
import yaml

from pipelines import cli
from pipelines.status.failure_class import Failure
from pipelines.status.run_status import SILENT_SECONDS, State, read_status
from ufork.checkpoint.folder import CheckpointFolder
from ufork.errors import ConfigError
from ufork.run_folder import RunFolder


def make_run(folder, *, steps=100, reports=(10, 20, 30), second_finished=False):
    """Two phases: the first is finished, the second has reported after `reports` steps, each of two seconds."""
    run = RunFolder(folder)
    train = {"train": {"steps": steps, "limit_seconds": None}}
    run.path.mkdir(parents=True, exist_ok=True)
    run.config.write_text(yaml.safe_dump({"phases": {"align": train, "all": train}}))
    for phase, seen in (("align", (steps,)), ("all", reports)):
        run.phase(phase).path.mkdir(parents=True)
        lines = [
            {"step": step, "seconds": 2.0 * step, "tokens_per_s": 100.0 * step, "loss/generation": 3.0 - step / 100}
            for step in seen
        ]
        run.phase(phase).metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for phase in ("align", "all")[: 1 + second_finished]:
        run.phase(phase).weights.mkdir()
        (run.phase(phase).weights / "model.safetensors").write_bytes(b"")
    return run


def tell(run, *events):
    """Each as of now, or so many seconds `after`."""
    folder = run.path / "slurm"
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    base = {"job": 17, "phase": None, "restart": 0, "nodes": "n[1-2]", "exit_code": None, "reason": ""}
    with open(folder / "jobs.jsonl", "a") as file:
        for event in events:
            values = {**base, "time": int(time.time()), **event}
            values["time"] += values.pop("after", 0)
            file.write(json.dumps(values) + "\n")


def silent_for(run, seconds):
    for path in run.path.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def status_of(run, **more):
    return read_status(run.path, {"PATH": ""}, **more)


def test_a_run_without_slurm_is_running_stopped_or_finished_by_its_files(tmp_path):
    run = make_run(tmp_path / "run")
    assert status_of(run).state == State.RUNNING
    silent_for(run, SILENT_SECONDS + 1)
    assert status_of(run).state == State.STOPPED
    assert status_of(make_run(tmp_path / "done", second_finished=True)).state == State.FINISHED
    assert status_of(make_run(tmp_path / "both", reports=())).phase.name == "all"


def test_step_speed_time_left_and_loss_are_those_of_the_stage_that_trains(tmp_path):
    status = status_of(make_run(tmp_path))
    phase = status.phase
    assert (phase.name, phase.step, phase.steps, phase.finished) == ("all", 30, 100, False)
    assert phase.tokens_per_s == pytest.approx(2500), "the mean of what was reported after 20 and 30 steps"
    assert phase.seconds_left == pytest.approx(140)
    assert phase.losses == {"generation": pytest.approx(2.7)}
    assert [each.finished for each in status.phases] == [True, False]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([{"event": "submitted"}], State.QUEUED),
        ([{"event": "submitted"}, {"event": "started", "after": -60}], State.RUNNING),
        ([{"event": "started"}, {"event": "requeued"}], State.QUEUED),
        ([{"event": "requeued"}, {"event": "started", "restart": 2, "after": 60}], State.RESUMING),
        ([{"event": "started"}, {"event": "ended", "exit_code": 1}], State.FAILED),
        ([{"event": "started"}, {"event": "ended", "exit_code": 75}], State.STOPPED),
        (
            [{"event": "submitted", "job": 18}, {"event": "started"}, {"event": "ended", "exit_code": 0}],
            State.QUEUED,
        ),
    ],
)
def test_a_run_of_slurm_is_what_its_newest_event_says(tmp_path, events, state):
    run = make_run(tmp_path)
    tell(run, *events)
    assert status_of(run).state == state


def test_restarts_are_those_of_slurm_or_of_the_checkpoints(tmp_path):
    run = make_run(tmp_path)
    for _ in range(3):
        CheckpointFolder(run.phase("all").checkpoints).take()
    assert status_of(run).restarts == 2
    tell(run, {"event": "started", "restart": 5})
    assert status_of(run).restarts == 5


def scontrol(tmp_path, script):
    path = tmp_path / "bin" / "scontrol"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{path.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("echo JobId=17 JobState=RUNNING NodeList=n1", State.RUNNING),
        ("echo JobId=17 JobState=NODE_FAIL", State.FAILED),
        ("echo JobId=17 JobState=CANCELLED", State.STOPPED),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", State.FAILED),
    ],
)
def test_slurm_knows_of_jobs_that_could_not_tell_their_end(tmp_path, script, state):
    run = make_run(tmp_path / "run")
    tell(run, {"event": "started", "after": -60})
    assert read_status(run.path, scontrol(tmp_path, script)).state == state


def test_a_slurm_that_does_not_answer_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.job_events.SLURM_SECONDS", 0.3)
    run = make_run(tmp_path / "run")
    tell(run, {"event": "started", "after": -60})
    status = read_status(run.path, scontrol(tmp_path, "sleep 60"))
    assert status.state == State.RUNNING
    assert "did not answer" in status.faults[0]


def test_the_end_report_names_the_class_and_the_line_of_that_jobs_log(tmp_path, capsys):
    run = make_run(tmp_path)
    tell(run, {"event": "started", "job": 18})
    told = "ufork train: rank 1: x.tar: cannot be read (gone); prepare the data again, or bring the file back"
    (run.path / "slurm" / "logs" / "18-1.log").write_text(f"align 1/12\n{told}\n")
    (run.path / "slurm" / "logs" / "17-0.log").write_text("torch.OutOfMemoryError: CUDA out of memory.\n")
    status = status_of(run, ended=1)
    assert (status.state, status.diagnosis.failure, status.diagnosis.line) == (State.FAILED, Failure.DATA, told)
    assert status_of(run, ended=75).diagnosis.failure == Failure.STOPPED
    assert cli.main(["status", str(tmp_path), "--ended", "1"]) == 0
    assert "failure     data" in capsys.readouterr().out


def test_what_was_left_out_is_counted_by_reason(tmp_path, capsys):
    run = make_run(tmp_path)
    run.phase("all").skipped_samples.mkdir()
    for replica in range(2):
        lines = [{"sample": f"s{number}", "reason": "empty" if number else "too long"} for number in range(3)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.phase("all").skipped_samples / f"replica-{replica:05d}.jsonl").write_text(text)
    assert status_of(run).phase.left_out == {"empty": 4, "too long": 2}
    assert cli.main(["status", str(tmp_path)]) == 0
    assert "left out    6 samples: 4 x empty; 2 x too long" in capsys.readouterr().out


DAMAGE = {
    "config.yaml": "phases: [",
    "phases/all/metrics.jsonl": '{"step": 5}\nnot json\n{"step": 7, "sec',
    "phases/all/checkpoints/step-00000020/state.json": "{}",
    "slurm/jobs.jsonl": '{"event": "started"}\n[]\n',
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_or_missing_file_is_told_and_the_rest_is_read(tmp_path, name, missing):
    run = make_run(tmp_path)
    path = run.path / name
    if missing:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DAMAGE[name])
    status = status_of(run)
    assert [phase.name for phase in status.phases] == ["align", "all"]
    assert bool(status.faults) == (not missing or name == "config.yaml")


def test_values_for_programs_are_those_of_the_page(tmp_path, capsys):
    make_run(tmp_path)
    assert cli.main(["status", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["phase"], values["phases"][1]["step"]) == ("running", "all", 30)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        read_status(tmp_path / "nowhere", {})
