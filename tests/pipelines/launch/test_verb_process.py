"""A verb's process: its log, its time, its failure, Ctrl-C, and its end with its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.launch import verb_process
from pipelines.launch.verb_process import VerbFailedError, VerbProcess, error_lines

SAYS_NO = (
    "import sys\nprint('working')\nprint('ufork train: x.yaml: no such key\\n  remedy', file=sys.stderr)\nsys.exit(2)"
)
BUSY = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
SAVES = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
    "print('ready', flush=True)\ntime.sleep(60)"
)


def process(tmp_path, program):
    return VerbProcess("train", [sys.executable, "-c", program], tmp_path / "logs/train.log", os.environ)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(verb_process, "POLL_SECONDS", 0.05)


def test_the_time_of_its_processes_is_seen(tmp_path):
    seen = []
    ended = process(tmp_path, BUSY).run(seen.append)
    assert seen == sorted(seen) and 1.5 <= ended.seconds
    assert 0.2 < ended.cpu_seconds <= ended.seconds + 0.2


def test_a_failure_has_the_verbs_message_log_and_exit_code(tmp_path):
    with pytest.raises(VerbFailedError) as failed:
        process(tmp_path, SAYS_NO).run(lambda seconds: None)
    assert failed.value.exit_code == 2
    log = tmp_path / "logs/train.log"
    assert str(failed.value) == (
        f"train failed with exit code 2; its log is {log}\n  ufork train: x.yaml: no such key\n    remedy"
    )
    assert "working" in log.read_text() and log.read_text().startswith("== ")


def test_a_verb_that_is_killed_is_reported_with_its_last_lines(tmp_path):
    with pytest.raises(VerbFailedError, match="killed by SIGKILL.*\n  last words") as failed:
        process(tmp_path, "import os\nprint('last words', flush=True)\nos.kill(os.getpid(), 9)").run(
            lambda seconds: None
        )
    assert failed.value.exit_code == 137


def test_the_log_of_an_earlier_start_is_kept_and_not_reported(tmp_path):
    for _ in range(2):
        with pytest.raises(VerbFailedError) as failed:
            process(tmp_path, SAYS_NO).run(lambda seconds: None)
    assert str(failed.value).count("no such key") == 1
    assert (tmp_path / "logs/train.log").read_text().count("\nworking\n") == 2


def test_the_last_message_is_shown_or_else_the_last_lines():
    assert error_lines(["ufork: 1", "note", "ufork train: bad", "remedy"]) == ["ufork train: bad", "remedy"]
    assert error_lines([str(number) for number in range(9)]) == ["4", "5", "6", "7", "8"]


def interrupt_when_ready(tmp_path, error=KeyboardInterrupt):
    def watch(seconds):
        if "ready" in (tmp_path / "logs/train.log").read_text().splitlines():
            raise error

    return watch


def test_ctrl_c_lets_the_verb_save_its_state(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        process(tmp_path, SAVES).run(interrupt_when_ready(tmp_path))
    assert (tmp_path / "logs/train.log").read_text().endswith("ready\nsaved\n")


def test_a_verb_that_does_not_stop_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(verb_process, "STOP_SECONDS", 0.2)
    child = "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child += "child = subprocess.Popen(['sleep', '60'])\nprint(child.pid)\nprint('ready', flush=True)\ntime.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        process(tmp_path, child).run(interrupt_when_ready(tmp_path))
    pid = int((tmp_path / "logs/train.log").read_text().splitlines()[-2])
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_stop_signals_are_handed_on(tmp_path):
    def watch(seconds):
        if "ready" in (tmp_path / "logs/train.log").read_text().splitlines():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(VerbFailedError) as failed:
        process(tmp_path, SAVES).run(watch)
    assert failed.value.exit_code == 75


def test_a_verb_is_killed_when_its_parent_is(tmp_path):
    reading, writing = os.pipe()
    program = (
        "import threading\nfrom pipelines.launch import verb_child\n"
        "threading.Thread(target=verb_child._exit_with_parent).start()\nprint('ready', flush=True)\n"
    )
    verb = subprocess.Popen([sys.executable, "-c", program], stdin=reading, stdout=subprocess.PIPE, text=True)
    os.close(reading)
    assert verb.stdout.readline() == "ready\n" and verb.poll() is None
    os.close(writing)
    assert verb.wait(20) == 1
