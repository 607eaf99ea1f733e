"""One part in a process of its own, which is stopped at its limit with everything that it started.

PartProcess -> new process and session: its output goes to a file, stacks of all threads too, shortly before the limit
            -> messages, taken into a PartResult as they come
            -> its end: finished, raised, died by a signal, or stopped
"""

import faulthandler
import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.context import BaseContext
from typing import Any

from benchmarks.gpu_check.part_list import Part
from benchmarks.gpu_check.report import PartResult, Report
from ufork.processes.failure import Failure
from ufork.processes.messages import MessageReader, wait_for_messages
from ufork.processes.worker import start_worker

DUMP_SECONDS = 2.0
"""Time before the limit at which a part writes the stacks of its threads."""
END_SECONDS = 5.0
"""Time that a killed process may take to end; one that hangs in a driver never does, and is left behind."""
OUTPUT_BYTES = 20_000
"""Most of a failed part's output that is kept, from its end."""

_FINISHED = ("finished", None)


class PartProcess:
    """A part that runs, until `has_ended`.

    Attributes:
        part: what runs.
        result: filled while it runs.
        deadline: when to call `stop_at_limit`, on the machine's monotonic clock.
        has_ended: whether the result is complete.
    """

    def __init__(self, part: Part, result: PartResult, *, limit_seconds: float, cpu: bool, context: BaseContext):
        """Starts `part`.

        Args:
            part: what to run.
            result: to fill.
            limit_seconds: until the deadline.
            cpu: whether to run at tiny sizes on the CPU.
            context: how processes are started.
        """
        self.part, self.result, self.has_ended = part, result, False
        self._start = time.monotonic()
        self.deadline = self._start + limit_seconds
        self._output = tempfile.NamedTemporaryFile(prefix=f"gpu_check-{part.name}-")
        arguments = (part.module, self._output.name, self.deadline, cpu)
        self._worker = start_worker(_run_in_process, *arguments, context=context, name=part.name, daemon=False)

    @property
    def messages(self) -> MessageReader:
        """To wait for; `take_message` reads them."""
        return self._worker.messages

    def take_message(self) -> None:
        """Takes in what the part has sent, or its end."""
        try:
            message = self.messages.read()
        except EOFError:
            self._end(self._worker.describe_end())
            return
        if isinstance(message, Failure):
            self._end(message.description)
        elif message == _FINISHED:
            self._end("")
        elif message is not None:
            self.result.take(message)

    def stop_at_limit(self) -> None:
        """Ends the part, which has failed."""
        self._end("stopped at its limit; see the stacks at the end of its output")

    def _end(self, error: str) -> None:
        self.kill()
        self.has_ended = True
        self.result.seconds = round(time.monotonic() - self._start, 1)
        self.result.error = error or "; ".join(self.result.failed_checks)
        self.result.status = "failed" if self.result.error else "passed"
        if self.result.error:
            self.result.output = _end_of(self._output.name)
        self._output.close()

    def kill(self) -> None:
        """Kills the process with all processes of its session, and does not wait for one that cannot be killed."""
        process = self._worker.process
        assert process.pid is not None
        with suppress(ProcessLookupError):  # it ended, or has not got to make its own group
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join(END_SECONDS)
        self.messages.close()


def take_messages(running: Sequence[PartProcess]) -> None:
    """Waits until one of the parts, if there are any, has sent something, and stops those that are at their limit."""
    if not running:
        return
    timeout = max(0.0, min(process.deadline for process in running) - time.monotonic())
    ready = wait_for_messages([process.messages for process in running], timeout)
    for process in running:
        if process.messages in ready:
            process.take_message()
        elif time.monotonic() >= process.deadline:
            process.stop_at_limit()


def _end_of(path: str) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - OUTPUT_BYTES))
        return file.read().decode(errors="replace")


def _run_in_process(send: Callable[[Any], None], module: str, output: str, deadline: float, cpu: bool) -> None:
    """Runs in the part's process."""
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    faulthandler.enable(all_threads=True)
    faulthandler.dump_traceback_later(max(deadline - time.monotonic() - DUMP_SECONDS, 0.1))
    importlib.import_module(module).run(Report(send, deadline=deadline), cpu=cpu)
    send(_FINISHED)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # what is left, such as a library's threads, is not part of the check
