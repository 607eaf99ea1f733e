"""Runs one part in a process of its own, which is stopped at its limit with everything that it started.

run_part -> new process and session: its output goes to a file, stacks of all threads too, shortly before the limit
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
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import BaseContext
from typing import Any

from benchmarks.gpu_check.part_list import Part
from benchmarks.gpu_check.report import PartResult, Report
from ufork.processes.failure import Failure
from ufork.processes.messages import wait_for_messages
from ufork.processes.worker import Worker, start_worker

DUMP_SECONDS = 2.0
"""Time before the limit at which a part writes the stacks of its threads."""
END_SECONDS = 5.0
"""Time that a killed process may take to end; one that hangs in a driver never does, and is left behind."""
OUTPUT_BYTES = 20_000
"""Most of a failed part's output that is kept, from its end."""

_FINISHED = ("finished", None)


def run_part(
    part: Part,
    result: PartResult,
    *,
    limit_seconds: float,
    cpu: bool,
    context: BaseContext,
    progress: Callable[[], None],
) -> None:
    """Runs `part` and fills `result`, calling `progress` whenever something was added to it.

    Args:
        part: what to run.
        result: filled while the part runs.
        limit_seconds: after which it is stopped.
        cpu: whether to run at tiny sizes on the CPU.
        context: how processes are started.
        progress: called after every message.
    """
    start = time.monotonic()
    with tempfile.NamedTemporaryFile(prefix=f"gpu_check-{part.name}-") as output:
        deadline = start + limit_seconds
        worker = start_worker(
            _run_in_process, part.module, output.name, deadline, cpu, context=context, name=part.name, daemon=False
        )
        try:
            error = _follow(worker, result, deadline, progress)
        finally:
            _stop(worker)
        result.seconds = round(time.monotonic() - start, 1)
        result.error = error or "; ".join(result.failed_checks)
        result.status = "failed" if result.error else "passed"
        if result.error:
            result.output = _end_of(output.name)
    progress()


def _follow(worker: Worker, result: PartResult, deadline: float, progress: Callable[[], None]) -> str:
    """Returns how the part failed; empty when it came to its end."""
    while wait_for_messages([worker.messages], max(0.0, deadline - time.monotonic())):
        try:
            message = worker.messages.read()
        except EOFError:
            return worker.describe_end()
        if isinstance(message, Failure):
            return message.description
        if message == _FINISHED:
            return ""
        if message is not None:
            result.take(message)
            progress()
    return "stopped at its limit; see the stacks at the end of its output"


def _stop(worker: Worker) -> None:
    """Kills the process with all processes of its session, and does not wait for one that cannot be killed."""
    pid = worker.process.pid
    assert pid is not None
    with suppress(ProcessLookupError):  # it ended, or has not got to make its own group
        os.killpg(pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join(END_SECONDS)
    worker.messages.close()


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
