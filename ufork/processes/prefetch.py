"""Items made ahead by several workers.

    make(worker, num_workers) in each of W processes -> queue -> pipe -> items of worker 0, 1, ..., W - 1, 0 in turn

The order of the items does not depend on which worker is faster.
"""

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from ufork.errors import LoaderError
from ufork.processes.child import STOP_SIGNALS, ignore_signals
from ufork.processes.worker import Worker, exit_with_failure, start_worker

Item = TypeVar("Item")
Make = Callable[[int, int], Iterator[Item]]
"""Takes the worker's number and the number of workers; pickled, and called in the worker's process."""

IGNORED_SIGNALS = (signal.SIGINT, *STOP_SIGNALS)
"""Signals meant for the ranks, which still need their workers to save a checkpoint."""


def prefetch(
    make: Make[Item], *, num_workers: int, context: BaseContext, ahead: int, timeout_seconds: float
) -> Iterator[Item]:
    """Yields the workers' items in turn, until the next worker has no more; closing the iterator kills the workers.

    Args:
        make: what each worker runs. Its items are copied through a pipe.
        num_workers: at least 1.
        context: how processes are started.
        ahead: items that each worker makes before they are taken.
        timeout_seconds: how long one item may take until it has arrived.

    Raises:
        LoaderError: a worker died, or an item did not arrive within `timeout_seconds`.
        Exception: what a worker raised.
    """
    with _started(make, num_workers, context, ahead) as workers:
        for number, worker in cycle(enumerate(workers)):
            message = _receive(number, worker, timeout_seconds)
            if not isinstance(message, _Made):
                return
            yield message.item


@dataclass(frozen=True)
class _Made:
    item: Any


@dataclass(frozen=True)
class _End:
    """Marks the end of a worker's items."""


def _receive(number: int, worker: Worker, timeout_seconds: float) -> Any:
    who = f"loader process {number} (pid {worker.process.pid})"
    try:
        return worker.receive(timeout_seconds)
    except TimeoutError as error:
        raise LoaderError(
            f"{who} {error}, data.worker_timeout_seconds={timeout_seconds:g}; its storage may be slow, or the process"
            " stopped",
            timed_out=True,
        ) from None
    except EOFError:
        end = worker.describe_end()
        raise LoaderError(
            f"{who} {end}; lower data.num_workers or data.prefetch_steps if memory ran out",
            process_exit_code=worker.process.exitcode,
        ) from None


@contextmanager
def _started(make: Make[Any], num_workers: int, context: BaseContext, ahead: int) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for number in range(num_workers):
            arguments = (make, number, num_workers, ahead)
            workers.append(start_worker(_work, *arguments, context=context, name=f"loader {number}"))
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def _work(send: Callable[[Any], None], make: Make[Any], worker: int, num_workers: int, ahead: int) -> None:
    """Runs in the worker: makes items while a thread sends those that are made."""
    ignore_signals(IGNORED_SIGNALS)
    made: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    sending = threading.Thread(target=_send_all, args=(made, send))
    sending.start()
    try:
        for item in make(worker, num_workers):
            made.put(_Made(item))
        made.put(_End())
    except BaseException as error:
        made.put(error)  # raised behind the items that were made before it
    sending.join()


def _send_all(made: "queue.Queue[Any]", send: Callable[[Any], None]) -> None:
    try:
        while isinstance(message := made.get(), _Made):
            send(message)
        if isinstance(message, BaseException):
            raise message
        send(message)
    except BaseException as error:  # this thread's own too: an item that cannot be pickled
        exit_with_failure(send, error)
