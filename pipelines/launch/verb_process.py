"""Runs a verb in a process of its own, with its output in a log, and watches its time.

command, log -> `watch` called every second -> Ended, or an error with the verb's own message and the path of its log

A stop signal is handed on to the verb. Ctrl-C stops it as SIGTERM does, so that training saves a checkpoint.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.commands import signal_name
from pipelines.launch.stop_signals import handled
from ufork.errors import UforkError
from ufork.files import make_folder, storage_errors
from ufork.redaction import redacted

POLL_SECONDS = 1.0
STOP_SECONDS = 60.0
"""Time in which an interrupted verb may save its state."""
SHOWN_LINES = 5
"""Last lines of a log that are shown when the verb left no message of its own."""
PROCESSES = Path("/proc")


class VerbFailedError(UforkError):
    """A verb failed; the exit code is the verb's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def verb_command(arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs `ufork` with `arguments` and ends with this process."""
    return [sys.executable, "-m", "pipelines.launch.verb_child", *arguments]


@dataclass(frozen=True)
class Ended:
    """How long a verb took."""

    seconds: float
    cpu_seconds: float
    """Processor time of all its processes, as far as it was seen."""


@dataclass
class VerbProcess:
    """One run of a verb."""

    name: str
    command: Sequence[str]
    """Such as `verb_command` returns."""
    log: Path
    environment: Mapping[str, str]
    began: float = field(default_factory=time.monotonic)
    _cpu_seconds: dict[int, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def run(self, watch: Callable[[float], None]) -> Ended:
        """Runs the verb and calls `watch` with its seconds so far, about once per second.

        Raises:
            VerbFailedError: it failed; the message has its error and the path of its log.
            StorageError: the log cannot be written.
            KeyboardInterrupt: Ctrl-C; the verb has ended.
        """
        make_folder(self.log.parent)
        with storage_errors(self.log), open(self.log, "ab") as log:
            log.write(f"== {time.strftime('%F %T')} {redacted(shlex.join(self.command))}\n".encode())
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,  # Ctrl-C reaches this process only, which then ends the verb in order
            )
        try:
            with handled(lambda number, frame: process.send_signal(number)):
                self._wait(process, watch)
        finally:
            _end(process)
        if process.returncode:
            raise self._failure(process.returncode, start)
        return Ended(self.seconds, sum(self._cpu_seconds.values()))

    def _wait(self, process: subprocess.Popen, watch: Callable[[float], None]) -> None:
        while process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
            self._cpu_seconds |= cpu_seconds_of_session(process.pid)
            watch(self.seconds)

    def _failure(self, code: int, start: int) -> VerbFailedError:
        how = f"was killed by {signal_name(-code)}" if code < 0 else f"failed with exit code {code}"
        with open(self.log, "rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").splitlines()
        message = "\n".join(f"  {line}" for line in error_lines(lines))
        return VerbFailedError(f"{self.name} {how}; its log is {self.log}\n{message}", code if code > 0 else 128 - code)


def _end(process: subprocess.Popen) -> None:
    """Ends a verb that still runs: as SIGTERM does, or after `STOP_SECONDS` or another Ctrl-C by killing it."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        assert process.stdin
        process.stdin.close()


def error_lines(log: Sequence[str]) -> Sequence[str]:
    """Returns the error that ended a verb, from the lines of its log: its last message, or else the last lines."""
    starts = [number for number, line in enumerate(log) if line.startswith("ufork ") and ": " in line]
    return log[starts[-1] :] if starts else log[-SHOWN_LINES:]


def cpu_seconds_of_session(session: int) -> dict[int, float]:
    """Returns the processor time of each live process of a session, by its number."""
    seconds = {}
    for path in PROCESSES.glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            words = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(words[3]) == session:
                ticks = int(words[11]) + int(words[12])
                seconds[int(path.parent.name)] = ticks / os.sysconf("SC_CLK_TCK")
    return seconds
