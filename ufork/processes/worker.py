"""One worker process as its parent sees it.

    start_worker(target, *args) -> process: target(send, *args), dies with its parent
                                -> messages that it sent, then the end of the pipe, or a Failure when target raised

Its parent reads what it sends with a time-out, or waits for several workers at once (`worker.messages`).
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from ufork.processes.child import die_with_parent
from ufork.processes.failure import Failure
from ufork.processes.messages import MessageReader, MessageWriter, wait_for_messages

_EXIT_SECONDS = 3.0
"""Time that the exit of a process may take after the end of its pipe."""
_UNKNOWN_EXIT_CODE = 255
"""What `multiprocessing.popen_forkserver` returns when the fork server, which knows exit codes, is gone."""


@dataclass(frozen=True)
class Worker:
    """A started process and what it sends."""

    process: BaseProcess
    messages: MessageReader

    def receive(self, timeout_seconds: float) -> Any:
        """Waits for the next message.

        Raises:
            TimeoutError: it was not complete in time; says whether it had begun.
            EOFError: the process has ended, or died; see `describe_end`.
            Exception: what the process raised.
        """
        deadline = time.monotonic() + timeout_seconds
        while (message := self._read_until(deadline)) is None:
            if time.monotonic() >= deadline:
                begun = "stopped in the middle of sending" if self.messages.is_inside_message else "sent nothing"
                raise TimeoutError(f"{begun} for {timeout_seconds:g} s")
        if isinstance(message, Failure):
            raise message.to_raise()
        return message

    def _read_until(self, deadline: float) -> Any:
        ready = wait_for_messages([self.messages], max(0.0, deadline - time.monotonic()))
        return self.messages.read() if ready else None

    def describe_end(self) -> str:
        """Describes how the process ended, after the end of its pipe was seen."""
        self.process.join(_EXIT_SECONDS)
        code = self.process.exitcode
        if code is None:
            return "closed its pipe without ending"
        if code == _UNKNOWN_EXIT_CODE:
            return (
                f"ended with exit code {code} and no message; Python also gives this code to a process whose fork"
                " server has died, as when all processes of a program are killed at once"
            )
        if code >= 0:
            return f"ended with exit code {code} and no message"
        by = signal.Signals(-code).name
        return f"died by {by}" + (", probably killed by the out-of-memory killer" if by == "SIGKILL" else "")

    def kill(self) -> None:
        """Kills the process, if it still runs, and frees what the parent holds of it."""
        self.process.kill()
        self.process.join()
        self.messages.close()


def start_worker(
    target: Callable[..., None], *args: Any, context: BaseContext, name: str, daemon: bool = True
) -> Worker:
    """Starts a process that calls `target(send, *args)`; `send` sends its argument to the parent.

    Args:
        target: importable by name in the new process; what it raises arrives as a Failure.
        args: sent by pickle.
        context: multiprocessing's spawn or forkserver. Never fork: it would copy the caller's threads and locks.
        name: name of the process, for messages and tracebacks.
        daemon: whether the process is killed when the parent exits; such a process can start no others.
    """
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(target, writing, args), name=name, daemon=daemon)  # type: ignore[attr-defined]
    process.start()
    writing.close()  # the process has the only other copy: its death is the end of the pipe
    return Worker(process, MessageReader(reading))


def _run(target: Callable[..., None], writing: Connection, args: tuple[Any, ...]) -> None:
    """The whole life of a worker process."""
    die_with_parent()
    send = MessageWriter(writing).send
    try:
        target(send, *args)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)  # the parent was interrupted, too, and reports it
    except BaseException as error:
        exit_with_failure(send, error)


def exit_with_failure(send: Callable[[Any], None], error: BaseException) -> None:
    """Ends a worker process, from any of its threads, with `error` as its last message."""
    with suppress(BrokenPipeError):  # the parent reads no more
        send(Failure.of(error))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)  # a normal exit could wait for threads, or for peers that are about to be killed
