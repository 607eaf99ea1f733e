"""Asking other programs: one that is missing, fails or hangs is an answer with its reason."""

import os
import time

import pytest

from pipelines.commands import NoAnswer, Reason, ask, has_program

LONG = 600.0


@pytest.fixture
def environment(tmp_path):
    os.symlink("/bin/sleep", tmp_path / "sleep")
    return {"PATH": str(tmp_path)}


@pytest.fixture
def program(tmp_path, environment):
    def make(script, name="scontrol"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


def test_output_is_returned_without_white_space_around_it(program, environment):
    program('echo; echo "$1 is UP"; echo')
    assert has_program("scontrol", environment)
    assert ask(["scontrol", "ping"], environment=environment, timeout_seconds=LONG) == "ping is UP"


def test_a_missing_program_is_named(environment):
    assert not has_program("scontrol", environment)
    with pytest.raises(NoAnswer, match="scontrol is not on the PATH") as raised:
        ask(["scontrol"], environment=environment, timeout_seconds=LONG)
    assert raised.value.reason is Reason.MISSING


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo no such cluster >&2; exit 3", "no such cluster"),
        ("exit 3", "exit code 3"),
        ("kill -9 $$", "by SIGKILL"),
        ("kill -40 $$", "by signal 40"),
    ],
)
def test_a_program_that_fails_is_described_by_its_output_or_exit_code(program, environment, script, text):
    program(script)
    with pytest.raises(NoAnswer, match=text) as raised:
        ask(["scontrol", "ping"], environment=environment, timeout_seconds=LONG)
    assert raised.value.reason is Reason.FAILED


def test_the_output_of_a_failed_program_is_kept(program, environment):
    program("echo first >&2; echo second >&2; exit 1")
    with pytest.raises(NoAnswer, match="^second$") as raised:
        ask(["scontrol"], environment=environment, timeout_seconds=LONG)
    assert raised.value.output == "first\nsecond"


def test_a_file_that_is_not_a_program_is_a_failure(program, environment):
    program("").write_bytes(b"\x7fELF of another machine")
    with pytest.raises(NoAnswer, match="cannot be started") as raised:
        ask(["scontrol"], environment=environment, timeout_seconds=LONG)
    assert raised.value.reason is Reason.FAILED


def test_a_program_that_hangs_is_killed_with_the_processes_that_it_started(program, environment, tmp_path):
    program(f"sleep {LONG} &\necho $! > {tmp_path}/child\nsleep {LONG}")
    seconds = 1
    while not (tmp_path / "child").exists():  # on a busy machine the shell takes a while to start it
        seconds *= 2
        with pytest.raises(NoAnswer, match=f"scontrol timed out after {seconds} s") as raised:
            ask(["scontrol"], environment=environment, timeout_seconds=seconds)
        assert raised.value.reason is Reason.TIMED_OUT
    child = (tmp_path / "child").read_text().strip()
    while _is_running(child):  # the test's own time limit ends it
        time.sleep(0.02)


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
