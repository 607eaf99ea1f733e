"""What all processes that ufork starts have in common: the signals by which a job is asked to stop, and their end."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Sent by schedulers to every process of a job, and meant for its ranks."""


def end_with_starter() -> None:
    """Has this process end with the one that started it, however that ends and whatever this one waits for then."""
    if starter := multiprocessing.parent_process():
        threading.Thread(target=_end_after, args=(starter,), daemon=True).start()


def _end_after(starter: BaseProcess) -> None:
    starter.join()
    os._exit(1)
