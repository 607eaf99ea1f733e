"""Items made ahead by other processes.

    make(worker, num_workers) in each of W processes -> queue -> pipe -> items of worker 0, 1, ..., W - 1, 0 in turn

Not torch's DataLoader: that one learns that a worker is gone or hangs by one time-out for both, lets it die of the
signals by which schedulers tell ranks to save and stop, and waits for it at the end.
"""

import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from ufork.errors import LoaderError, UforkError
from ufork.processes.child import STOP_SIGNALS, end_with_starter

Item = TypeVar("Item")
Make = Callable[[int, int], Iterator[Item]]
"""Takes the worker's number and the number of workers; pickled, and called in the worker's process."""

IGNORED_SIGNALS = (signal.SIGINT, *STOP_SIGNALS)
"""Meant for the ranks, which still need their workers then."""


def load_ahead(
    make: Make[Item], *, num_workers: int, context: BaseContext, ahead: int, timeout_seconds: float
) -> Iterator[Item]:
    """Yields the workers' items in turn, until the next worker has no more; closing the iterator ends the workers.

    Args:
        make: what each worker runs. Tensors of its items come through shared memory, all else is pickled.
        num_workers: at least 1.
        context: how processes are started.
        ahead: items that each worker makes before they are taken.
        timeout_seconds: how long one item may take.

    Raises:
        LoaderError: a worker died, or hung for `timeout_seconds`.
        Exception: what a worker raised.
    """
    with _started(make, num_workers, context, ahead) as workers:
        for worker in cycle(workers):
            outcome = worker.take(timeout_seconds)
            if isinstance(outcome, _Failed):
                raise outcome.error
            if outcome is None:
                return
            yield outcome.item


@dataclass(frozen=True)
class _Made:
    item: Any


@dataclass(frozen=True)
class _Failed:
    error: BaseException


@dataclass(frozen=True)
class _Worker:
    """The rank's view of one."""

    number: int
    process: BaseProcess
    outcomes: Connection

    def take(self, timeout_seconds: float) -> _Made | _Failed | None:
        """Its next outcome; None when it has no more."""
        who = f"loader process {self.number} (pid {self.process.pid})"
        if not wait([self.outcomes], timeout_seconds):
            raise LoaderError(
                f"{who}: made nothing in data.worker_timeout_seconds={timeout_seconds:g}; is its storage slow?"
            )
        try:
            return self.outcomes.recv()
        except (EOFError, OSError):
            self.process.join(1.0)
            raise LoaderError(
                f"{who}: gone, exit code {self.process.exitcode}; was it killed for want of memory? Lower"
                " data.num_workers or data.prefetch_steps"
            ) from None


@contextmanager
def _started(make: Make[Any], num_workers: int, context: BaseContext, ahead: int) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        for number in range(num_workers):
            outcomes, sender = context.Pipe(duplex=False)
            arguments = (make, number, num_workers, ahead, sender)
            process = context.Process(target=_work, args=arguments, name=f"loader {number}", daemon=True)  # type: ignore[attr-defined]
            process.start()
            sender.close()  # the worker has the only other end: when it is gone, reading ends
            workers.append(_Worker(number, process, outcomes))
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.outcomes.close()


def _work(make: Make[Any], worker: int, num_workers: int, ahead: int, sender: Connection) -> None:
    """Runs in the worker: makes items while a thread sends those that are made."""
    import torch

    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_starter()
    torch.set_num_threads(1)
    made: queue.Queue[_Made | _Failed | None] = queue.Queue(maxsize=ahead)
    sending = threading.Thread(target=_send_all, args=(made, sender))
    sending.start()
    try:
        for item in make(worker, num_workers):
            made.put(_Made(item))
        made.put(None)
    except Exception as error:
        made.put(_Failed(error if isinstance(error, UforkError) else _sendable(error)))
    sending.join()
    threading.Event().wait()  # what was sent through shared memory is handed out by this process until it is ended


def _send_all(made: "queue.Queue[_Made | _Failed | None]", sender: Connection) -> None:
    while isinstance(outcome := made.get(), _Made):
        sender.send_bytes(ForkingPickler.dumps(outcome))
    sender.send_bytes(ForkingPickler.dumps(outcome))


def _sendable(error: Exception) -> Exception:
    """With its traceback as a note, or its text where it cannot be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
