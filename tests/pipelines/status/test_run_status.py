"""The state of a run, by the files that it leaves: with and without Slurm, whole and damaged."""

import json
import os
import time

import pytest
import yaml

from pipelines import cli
from pipelines.status.failure_class import FailureClass
from pipelines.status.failure_record import record_of, write_record
from pipelines.status.run_status import SILENT_SECONDS, State, read_status
from ufork.checkpoint.folder import CheckpointFolder
from ufork.errors import ConfigError, PeerError, ShardError, StoppedError
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


def add_events(run, *events):
    """Appends events to jobs.jsonl, each as of now or some seconds `after`."""
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


def test_values_that_json_cannot_hold_are_null(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    line = '{"step": 40, "seconds": 90, "tokens_per_s": 5, "loss/generation": NaN, "loss/x": %s, "loss/y": 3}' % (
        "9" * 400
    )
    run.phase("all").metrics.write_text(line + "\n")
    assert cli.main(["status", "--json", str(run.path)]) == 0
    values = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert values["phases"][1]["losses"] == {"generation": None, "y": 3.0} and not values["faults"]


def test_a_run_without_slurm_is_running_stopped_or_finished_by_its_files(tmp_path):
    run = make_run(tmp_path / "run")
    assert status_of(run).state == State.RUNNING
    silent_for(run, SILENT_SECONDS + 1)
    assert status_of(run).state == State.STOPPED
    assert status_of(make_run(tmp_path / "done", second_finished=True)).state == State.FINISHED
    assert status_of(make_run(tmp_path / "both", reports=())).phase.name == "all"


def test_step_speed_time_left_and_loss_are_those_of_the_phase_in_training(tmp_path):
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
def test_the_newest_event_gives_the_state_of_a_slurm_run(tmp_path, events, state):
    run = make_run(tmp_path)
    add_events(run, *events)
    assert status_of(run).state == state


def test_restarts_are_those_of_slurm_or_of_the_checkpoints(tmp_path):
    run = make_run(tmp_path)
    for _ in range(3):
        CheckpointFolder(run.phase("all").checkpoints).take()
    assert status_of(run).restarts == 2
    add_events(run, {"event": "started", "restart": 5})
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
def test_slurm_knows_jobs_that_could_not_record_their_end(tmp_path, script, state):
    run = make_run(tmp_path / "run")
    add_events(run, {"event": "started", "after": -60})
    assert read_status(run.path, scontrol(tmp_path, script)).state == state


def test_a_slurm_that_does_not_answer_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.job_events.SLURM_SECONDS", 2)
    run = make_run(tmp_path / "run")
    add_events(run, {"event": "started", "after": -60})
    status = read_status(run.path, scontrol(tmp_path, "sleep 600"))
    assert status.state == State.RUNNING
    assert "timed out after 2 s" in status.faults[0]


def fail(folder, error, rank):
    write_record(folder / f"{rank}.json", record_of(error, exit_code=1, rank=rank))


def test_the_end_report_shows_the_cause_among_the_ranks_of_that_start(tmp_path, capsys):
    run = make_run(tmp_path)
    add_events(run, {"event": "started", "job": 18, "restart": 1})
    fail(run.job_failures(18, 0), MemoryError("of the start before"), rank=0)
    fail(run.job_failures(17, 1), MemoryError("of another job"), rank=0)
    fail(run.job_failures(18, 1), PeerError("rank 1 is gone"), rank=0)
    fail(run.job_failures(18, 1), ShardError("words about x.tar"), rank=1)
    status = status_of(run, ended=1)
    assert (status.state, status.diagnosis.failure, status.diagnosis.rank) == (State.FAILED, FailureClass.DATA, 1)
    assert status.diagnosis.line == "words about x.tar"
    assert status_of(run, ended=75).diagnosis.failure == FailureClass.STOPPED
    assert cli.main(["status", str(tmp_path), "--ended", "1"]) == 0
    assert "failure     data\non rank     1\nshown by    words about x.tar\n" in capsys.readouterr().out


def test_logs_are_read_from_the_newest_start_of_that_job(tmp_path):
    run = make_run(tmp_path)
    add_events(run, {"event": "started", "job": 18, "restart": 1})
    earlier, node = "torch.OutOfMemoryError: CUDA out of memory.", "srun: error: Node failure on n2"
    (run.job_logs / "18-1.log").write_text(f"== restart 0, n1\n{earlier}\n== restart 1, n1\nall 1/12\n")
    (run.job_logs / "17-0.log").write_text(f"{earlier}\n")
    assert status_of(run, ended=1).diagnosis.failure == FailureClass.OTHER
    (run.job_logs / "18.log").write_text(f"== restart 1, n[1-2]\n{node}\n")
    assert (status_of(run, ended=1).diagnosis.failure, status_of(run, ended=1).diagnosis.line) == (
        FailureClass.NODE,
        node,
    )


def test_without_slurm_a_failure_counts_until_the_run_reports_again(tmp_path):
    run = make_run(tmp_path)
    silent_for(run, SILENT_SECONDS + 1)
    fail(run.failures, ShardError("words"), rank=0)
    status = status_of(run)
    assert (status.state, status.diagnosis.failure) == (State.FAILED, FailureClass.DATA)
    os.utime(run.phase("all").metrics, (time.time() + 60,) * 2)
    assert (status_of(run).state, status_of(run).diagnosis) == (State.RUNNING, None)
    silent_for(run, SILENT_SECONDS + 1)
    fail(run.failures, StoppedError("saved"), rank=0)
    assert status_of(run).state == State.STOPPED


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    run = make_run(tmp_path / "run\x1b[2J")
    add_events(run, {"event": "ended", "exit_code": 1, "reason": "\x1b]0;title\x07", "nodes": "n\n1", "phase": "a\rb"})
    fail(run.job_failures(17, 0), ShardError("\x1b[31mred\u202e"), rank=0)
    run.phase("all").skipped_samples.mkdir()
    (run.phase("all").skipped_samples / "replica-00000.jsonl").write_text(json.dumps({"reason": "\x1bc"}) + "\n")
    assert cli.main(["status", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "\\x1b[31mred" in shown and "\\x1b]0;title\\x07" in shown and "on n\\n1" in shown


def test_skipped_samples_are_counted_by_reason(tmp_path, capsys):
    run = make_run(tmp_path)
    run.phase("all").skipped_samples.mkdir()
    for replica in range(2):
        lines = [{"sample": f"s{number}", "reason": "empty" if number else "too long"} for number in range(3)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.phase("all").skipped_samples / f"replica-{replica:05d}.jsonl").write_text(text)
    assert status_of(run).phase.skipped == {"empty": 4, "too long": 2}
    assert cli.main(["status", str(tmp_path)]) == 0
    assert "skipped     6 samples: 4 x empty; 2 x too long" in capsys.readouterr().out


DAMAGE = {
    "config.yaml": "phases: [",
    "phases/all/metrics.jsonl": '{"step": 5}\nnot json\n{"step": 7, "sec',
    "phases/all/checkpoints/step-00000020/state.json": "{}",
    "phases/all/skipped_samples/replica-00000.jsonl": "[]\n",
    "slurm/jobs.jsonl": '{"event": "started"}\n[]\n',
    "failures/0.json": '{"failure": "bad luck"}',
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_or_missing_file_is_reported_and_the_rest_is_read(tmp_path, name, missing):
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


NESTED = "[" * 100_000
JUNK = [
    b"",
    b"\x00\xff\xfe\n",
    NESTED.encode() + b"\n",
    b"null\n",
    b"[1, 2]\n",
    b'{"phases": [1]}\n',
    b"9" * 5000 + b"\n",
]
REPORTS = [{"step": None}, {"step": -1}, {"step": "x", "seconds": {}, "tokens_per_s": []}, {"step": 10**400}]
REPORTS += [
    {"step": 1, "seconds": 1e308, "tokens_per_s": 1e308},
    {"step": 1, "seconds": float("nan"), "tokens_per_s": 1},
]
REPORTS += [{"step": 1, "seconds": 1, "tokens_per_s": 1, "loss/a": "x"}]
EVENTS = [{"job": "x"}, {"job": 1}, {"job": 1, "event": [], "time": "now"}, {"job": 1, "event": "ended", "time": 1e400}]
CONFIGS = [{"phases": {"../../etc": {}}}, {"phases": {"a": 3}}, {"phases": {"a": {"train": []}}}, {"phases": "all"}]
CONFIGS += [
    {"phases": {"all": {"train": {"steps": "many", "limit_seconds": float("inf")}}}},
    {"phases": {1: {"train": {}}}},
]
CASES = [(name, junk) for name in DAMAGE for junk in JUNK]
CASES += [("phases/all/metrics.jsonl", (json.dumps(each) + "\n").encode()) for each in REPORTS]
CASES += [("slurm/jobs.jsonl", (json.dumps(each) + "\n").encode()) for each in EVENTS]
CASES += [("config.yaml", yaml.safe_dump(each).encode()) for each in CONFIGS]
CASES += [("config.yaml", b"a: 2026-99-99"), ("config.yaml", NESTED.encode())]


def test_no_damage_raises(tmp_path, capsys, subtests):
    """Each file is damaged in turn, also by a folder or a pipe in its place."""
    for number, (name, content) in enumerate([*CASES, *((name, None) for name in DAMAGE)]):
        with subtests.test(f"{name}: {content[:40] if content else content}"):
            run = make_run(tmp_path / str(number))
            path = run.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            elif name.endswith(("config.yaml", "state.json")):
                path.mkdir()
            else:
                os.mkfifo(path)
            for form in ([], ["--json"], ["--ended", "1"]):
                assert cli.main(["status", str(run.path), *form]) == 0
            assert "Traceback" not in capsys.readouterr().out


def test_values_for_programs_are_those_of_the_page(tmp_path, capsys):
    make_run(tmp_path)
    assert cli.main(["status", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["phase"], values["phases"][1]["step"]) == ("running", "all", 30)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        read_status(tmp_path / "nowhere", {})
