"""Numbered jobs, done by several processes; when a process dies, only the job that it was doing is lost.

    run_jobs(jobs, start) -> each process: work = start() once, then work(job) for one job after the other -> results

The processes die with their parent.
"""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, TypeVar

from ufork.errors import WorkerError
from ufork.processes.child import STOP_SIGNALS, ignore_signals
from ufork.processes.failure import Failure
from ufork.processes.messages import MessageReader, wait_for_messages
from ufork.processes.worker import Worker, start_worker

Result = TypeVar("Result")
Start = Callable[[], Callable[[int], Result]]
"""Opens what all jobs need and returns the function that does one; importable by name, called once in each process."""

_CLEANUP_SECONDS = 5.0
"""Time in which a process that was asked to end may remove its drafts."""


def run_jobs(jobs: Iterable[int], start: Start[Result], *, num_workers: int) -> Generator[tuple[int, Result]]:
    """Yields each job with its result, in the order in which they finish; closing the iterator ends the processes.

    Args:
        jobs: their numbers.
        start: see `Start`.
        num_workers: number of processes; with 1 the jobs run in this process.

    Raises:
        WorkerError: a process died; names the process and its job.
        Exception: what a job raised.
    """
    waiting = iter(jobs)
    if num_workers == 1:
        yield from _run_here(waiting, start)
        return
    with _started(start, num_workers) as workers:
        busy = {worker.messages: worker for worker in workers if worker.give(next(waiting, None))}
        while busy:
            for messages in wait_for_messages(busy, None):
                worker = busy[messages]
                job, outcome = worker.job, worker.read()
                if outcome is None:
                    continue
                if not worker.give(next(waiting, None)):
                    del busy[worker.messages]
                yield job, outcome.value


def run_jobs_in_order(num_jobs: int, start: Start[Result], *, num_workers: int) -> Generator[Result]:
    """Yields the results of jobs 0 to `num_jobs` - 1 in this order; otherwise as `run_jobs`."""
    early: dict[int, Result] = {}
    expected = 0
    with closing(run_jobs(range(num_jobs), start, num_workers=num_workers)) as results:
        for job, result in results:
            early[job] = result
            while expected in early:
                yield early.pop(expected)
                expected += 1


def _run_here(jobs: Iterator[int], start: Start[Result]) -> Iterator[tuple[int, Result]]:
    work = None
    for job in jobs:
        work = work or start()
        yield job, work(job)


@dataclass(frozen=True)
class _Outcome:
    value: Any


@dataclass
class _Member:
    """A worker of the pool and the pipe to it."""

    worker: Worker
    jobs: Connection
    job: int = -1

    @property
    def messages(self) -> MessageReader:
        """The reader of its messages."""
        return self.worker.messages

    def give(self, job: int | None) -> bool:
        """Sends it the next job; returns False when there is none."""
        if job is not None:
            self.job = job
            try:
                self.jobs.send(job)
            except OSError:
                self.read()  # why it ended, if it has sent that
                raise self._death() from None
        return job is not None

    def read(self) -> _Outcome | None:
        """Reads what has arrived of its outcome; None while it is incomplete."""
        try:
            message = self.messages.read()
        except EOFError:
            raise self._death() from None
        if isinstance(message, Failure):
            raise message.to_raise()
        return message

    def _death(self) -> WorkerError:
        process, end = self.worker.process, self.worker.describe_end()
        return WorkerError(
            f"{process.name} (pid {process.pid}) {end}, at job {self.job}. If memory ran out,"
            " lower num_workers or shard_mb; run the same command again to resume: finished jobs are kept",
            process_exit_code=process.exitcode,
        )

    def end(self) -> None:
        """Closes the pipe of jobs, which ends it between two jobs, and kills it if that takes too long."""
        self.jobs.close()
        self.worker.process.join(_CLEANUP_SECONDS)
        self.worker.kill()


@contextmanager
def _started(start: Start[Any], num_workers: int) -> Iterator[list[_Member]]:
    # Fresh interpreters: a fork would copy the caller's threads and locks, and a fork server has no use for its import.
    context = multiprocessing.get_context("spawn")
    members: list[_Member] = []
    try:
        for number in range(num_workers):
            reading, writing = context.Pipe(duplex=False)
            worker = start_worker(_work, start, reading, context=context, name=f"worker {number}")
            members.append(_Member(worker, writing))
            reading.close()
        yield members
    except BaseException:
        for member in members:
            member.worker.process.terminate()
        raise
    finally:
        for member in members:
            member.end()


class _Terminated(BaseException):
    """SIGTERM arrived: unwinds the job, so that its drafts are removed."""


def _work(send: Callable[[_Outcome], None], start: Start[Any], jobs: Connection) -> None:
    """Runs in the worker until the parent closes `jobs`."""
    ignore_signals({signal.SIGINT, *STOP_SIGNALS} - {signal.SIGTERM})
    signal.signal(signal.SIGTERM, _terminate)
    with suppress(_Terminated, BrokenPipeError):
        work = start()
        while (job := _next_job(jobs)) is not None:
            send(_Outcome(work(job)))


def _next_job(jobs: Connection) -> int | None:
    try:
        return jobs.recv()
    except EOFError:
        return None


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once: both the scheduler and the parent may send it
    raise _Terminated
