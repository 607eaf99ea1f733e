"""Jobs with numbers, done by several processes; what is lost when one dies is the job that it was at.

    run_jobs(jobs, start) -> each process: work = start() once, then work(job) for one job after the other -> results

The processes end with whoever started them, however that one ends.
"""

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

from ufork.errors import UforkError, WorkerError
from ufork.processes.child import end_with_starter

Result = TypeVar("Result")
Start = Callable[[], Callable[[int], Result]]
"""Opens what all jobs need and returns what does one; importable by name, called once in each process."""

_PATIENCE_SECONDS = 5.0
"""For which a process that was asked to end may tidy up."""


def run_jobs(jobs: Iterable[int], start: Start[Result], *, num_workers: int) -> Generator[tuple[int, Result]]:
    """Yields each job with its result, in the order in which they are done; closing the iterator ends the processes.

    Args:
        jobs: their numbers.
        start: see `Start`.
        num_workers: processes; 1 works in this one.

    Raises:
        WorkerError: a process died, by the system's want of memory or by hand; names the process and its job.
        Exception: what a job raised.
    """
    waiting = iter(jobs)
    if num_workers == 1:
        yield from _run_here(waiting, start)
        return
    with _started(start, num_workers) as workers:
        busy = {worker.connection: worker for worker in workers if worker.give(next(waiting, None))}
        while busy:
            for connection in wait(list(busy)):
                worker = busy.pop(connection)  # type: ignore[call-overload]
                job, result = worker.job, worker.take()
                if worker.give(next(waiting, None)):
                    busy[worker.connection] = worker
                yield job, result


def _run_here(jobs: Iterator[int], start: Start[Result]) -> Iterator[tuple[int, Result]]:
    work = None
    for job in jobs:
        work = work or start()
        yield job, work(job)


@dataclass(frozen=True)
class _Failed:
    error: Exception


@dataclass
class _Worker:
    """The starter's view of one."""

    process: BaseProcess
    connection: Connection
    job: int = -1

    def give(self, job: int | None) -> bool:
        """Sends it the next job; False when there is none."""
        if job is not None:
            self.job = job
            try:
                self.connection.send(job)
            except OSError:
                raise self._death() from None
        return job is not None

    def take(self) -> Any:
        """What its job gave."""
        try:
            result = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(result, _Failed):
            raise result.error
        return result

    def _death(self) -> WorkerError:
        self.process.join(1.0)
        return WorkerError(
            f"{self.process.name} (pid {self.process.pid}): gone at job {self.job}, exit code {self.process.exitcode};"
            " was it killed for want of memory? Lower num_workers or shard_mb, and run the same command again:"
            " what is done stays done"
        )

    def end(self) -> None:
        """Tells it that no job comes any more, and lets it tidy up for a while."""
        self.connection.close()
        self.process.join(_PATIENCE_SECONDS)
        self.process.kill()
        self.process.join()


@contextmanager
def _started(start: Start[Any], num_workers: int) -> Iterator[list[_Worker]]:
    # Fresh interpreters: a fork would carry along the threads and locks of whoever calls.
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    try:
        for number in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(start, theirs), name=f"worker {number}", daemon=True)
            process.start()
            theirs.close()  # the worker has the only other end: when it is gone, reading ends
            workers.append(_Worker(process, ours))
        yield workers
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.end()


def _work(start: Start[Any], connection: Connection) -> None:
    """Runs in the worker, until the starter ends it."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # sent to all processes of a job, but meant for the starter
    signal.signal(signal.SIGTERM, _leave)
    end_with_starter()
    with suppress(EOFError, BrokenPipeError):  # the starter asks for no more
        for outcome in _outcomes(start, connection):
            connection.send(outcome)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process with its drafts tidied up, once: a job's signals come from the scheduler and the starter."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def _outcomes(start: Start[Any], connection: Connection) -> Iterator[Any]:
    try:
        work = start()
    except Exception as error:
        yield _Failed(_sendable(error))
        return
    while True:
        job = connection.recv()
        try:
            yield work(job)
        except Exception as error:
            yield _Failed(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """Ours as they are; of others the traceback, as their own classes need not survive the way."""
    return error if isinstance(error, UforkError) else RuntimeError("".join(traceback.format_exception(error)))
