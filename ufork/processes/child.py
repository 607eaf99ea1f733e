"""Signals of a process that ufork starts, and its death with its parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from multiprocessing.process import BaseProcess

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""Signals that schedulers, or a terminal that closes, send to every process of a job, and that are meant for its
ranks."""


def ignore_signals(numbers: Iterable[int]) -> None:
    """Ignores signals that are sent to all processes of a job but meant for the parent."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """Kills this process when its parent dies, even if the parent was killed or this process is blocked."""
    # Not prctl(PR_SET_PDEATHSIG): the parent of a process from a fork server is the server.
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
