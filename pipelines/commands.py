"""Running other programs with a time limit: one that is missing, fails or hangs is an answer like any other.

program, arguments -> its output, or `NoAnswer` with the reason
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from enum import StrEnum


class Reason(StrEnum):
    """Reason for which a program gave no answer."""

    MISSING = "missing"
    FAILED = "failed"
    TIMED_OUT = "timed out"


class NoAnswer(Exception):
    """A program is missing, failed or timed out; the text says which, in one line."""

    def __init__(self, text: str, reason: Reason, output: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        self.output = output
        """Text that a failed program printed: its errors, or else its output."""


def has_program(name: str, environment: Mapping[str, str]) -> bool:
    """Whether `name` is on the PATH of `environment`."""
    return shutil.which(name, path=environment.get("PATH", "")) is not None


def ask(command: Sequence[str], *, environment: Mapping[str, str], timeout_seconds: float) -> str:
    """Runs a program and returns what it prints, without the white space around it.

    At the limit its whole process group is killed and not waited for: a process that hangs in a driver cannot be
    killed, and would hold up the caller.

    Args:
        command: the program and its arguments.
        environment: of the program; PATH is searched for it.
        timeout_seconds: how long it may take.

    Raises:
        NoAnswer: the program is missing, failed or timed out.
    """
    program, name = shutil.which(command[0], path=environment.get("PATH", "")), command[0].rpartition("/")[2]
    if program is None:
        raise NoAnswer(f"{name} is not on the PATH", Reason.MISSING)
    process = _start([program, *command[1:]], environment)
    try:
        printed, complaint = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{name} timed out after {timeout_seconds:g} s", Reason.TIMED_OUT) from None
    finally:
        _abandon(process)
    if process.returncode:
        said = complaint.strip() or printed.strip()
        raise NoAnswer(_describe_failure(name, process.returncode, said), Reason.FAILED, said)
    return printed.strip()


def _start(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Starts the program in its own process group, so that the processes it starts are killed with it."""
    try:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise NoAnswer(f"{command[0]} cannot be started ({error.strerror})", Reason.FAILED) from None


def _abandon(process: "subprocess.Popen[str]") -> None:
    """Kills what is left of a program that has not ended, and closes our ends of its pipes."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _describe_failure(program: str, code: int, complaint: str) -> str:
    lines = [line for line in complaint.splitlines() if line.strip()]
    if lines and code > 0:
        return lines[-1].strip()
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"failed with exit code {code}"
    return f"{program} {how}"


def signal_name(number: int) -> str:
    """Returns a signal's name, such as SIGKILL; real-time signals have none but their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
