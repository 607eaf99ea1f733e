"""Ranks as processes of this machine: started together, watched together, ended together.

    start_local_ranks -> N worker processes, each calls function(rank_env, *args)
                      -> their outcomes, read while watching for ranks that die without sending one
                      -> every result, or the first failure after the other ranks were killed

A rank dies with the process that started it (`ufork.processes.child`).
"""

import contextlib
import faulthandler
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from pipelines.launch.stop_signals import handled
from ufork.errors import FailureClass, PeerError, UforkError
from ufork.parallel.rank_environment import RankEnvironment
from ufork.processes.failure import Failure
from ufork.processes.messages import wait_for_messages
from ufork.processes.worker import Worker, start_worker

CONSEQUENCE_SECONDS = 0.3
"""Time in which outcomes are still read after the first failure: errors of other ranks about a lost connection may
arrive before the death of the rank that caused them is seen."""
EXIT_SECONDS = 3.0
"""Time in which a rank that has sent its result may exit."""
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST_PORT, PORTS_TRIED = 10_000, 100
STACKS_SIGNAL = signal.SIGRTMIN
"""Makes a rank write its stacks; SIGUSR1 and SIGUSR2 ask a job to stop."""


class RankFailedError(PeerError):
    """The first rank of a job that failed, and how."""

    def __init__(
        self, rank: int, cause: BaseException | None, description: str, *, process_exit_code: int | None = None
    ) -> None:
        super().__init__(f"rank {rank}: {description}", rank=rank, process_exit_code=process_exit_code)
        self.failure = FailureClass.CODE if process_exit_code is None else FailureClass.OTHER
        self.rank = rank
        self.cause = cause
        """The exception that the rank raised, with its traceback as a note; None when it died without one."""
        if isinstance(cause, UforkError):
            self.exit_code, self.failure = cause.exit_code, cause.failure
            self.fields = {**cause.fields, "rank": rank}


@dataclass(frozen=True)
class _Result:
    value: Any


@dataclass
class _Rank:
    """The parent's view of one rank."""

    worker: Worker
    stacks: Connection
    """Raw text: the stacks of a rank that was asked for them."""
    outcome: _Result | Failure | None = None
    died: bool = False
    """Whether it ended without sending an outcome."""

    @property
    def finished(self) -> bool:
        return self.died or self.outcome is not None

    @property
    def failed(self) -> bool:
        return self.died or isinstance(self.outcome, Failure)

    def read(self) -> None:
        """Takes in what the rank has sent; an incomplete outcome stays for the next call."""
        try:
            self.outcome = self.worker.messages.read()
        except EOFError:
            self.died = True


@dataclass
class _Watch:
    """Reads outcomes until all ranks have finished or one has failed."""

    ranks: list[_Rank]
    deadline: float = field(default=float("inf"))

    def until_decided(self) -> None:
        while not all(rank.finished for rank in self.ranks) and not self._failed() and time.monotonic() < self.deadline:
            self._read_outcomes(self.deadline)
        if self._failed():
            consequence_deadline = time.monotonic() + CONSEQUENCE_SECONDS
            while time.monotonic() < consequence_deadline and not all(rank.finished for rank in self.ranks):
                self._read_outcomes(consequence_deadline)

    def first_failed(self) -> int | None:
        """A rank that died comes before those that raised, which may have raised because of it."""
        failed = self._failed()
        return min(failed, key=lambda n: self._failure_seconds(self.ranks[n])) if failed else None

    def unfinished(self) -> list[int]:
        return [number for number, rank in enumerate(self.ranks) if not rank.finished]

    def _failed(self) -> list[int]:
        return [number for number, rank in enumerate(self.ranks) if rank.failed]

    @staticmethod
    def _failure_seconds(rank: _Rank) -> float:
        return rank.outcome.seconds if isinstance(rank.outcome, Failure) else float("-inf")

    def _read_outcomes(self, until: float) -> None:
        unfinished = {rank.worker.messages: rank for rank in self.ranks if not rank.finished}
        seconds = None if until == float("inf") else max(0.0, until - time.monotonic())
        for messages in wait_for_messages(unfinished, seconds):
            unfinished[messages].read()


def start_local_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    *args: Any,
    context: BaseContext,
    timeout_seconds: float = float("inf"),
) -> list[Any]:
    """Calls `function(rank_env, *args)` on `num_ranks` new processes of this machine and waits for all of them.

    Args:
        function: importable by name in a new process; `args` are sent by pickle.
        num_ranks: number of processes.
        args: passed to every rank after its RankEnvironment.
        context: how processes are started (multiprocessing's spawn or forkserver).
        timeout_seconds: after which all ranks are killed.

    Returns:
        what each rank returned, in the order of ranks; tensors arrive as copies.

    Raises:
        RankFailedError: the first rank that raised or died; the others have been killed.
        PeerError: some ranks did not finish in time; the message shows the stacks of each of them.
    """
    port, secret = free_port(), secrets.token_hex()
    ranks: list[_Rank] = []
    try:
        for number in range(num_ranks):
            rank_env = RankEnvironment(
                rank=number,
                world_size=num_ranks,
                local_rank=number,
                master_address="127.0.0.1",
                master_port=port,
                secret=secret,
            )
            ranks.append(_start(function, rank_env, args, context))
        watch = _Watch(ranks, time.monotonic() + timeout_seconds)
        with handled(lambda number, _: _forward_signal(number, ranks)):
            watch.until_decided()
        return _results(watch, timeout_seconds)
    finally:
        _kill(ranks)


def free_port() -> int:
    """A TCP port of this machine on which no process listens at the moment.

    It is below those that the system gives to outgoing connections, one of which would otherwise take it now and then
    on a busy machine, in the seconds until rank 0 listens.
    """
    first_outgoing = int(EPHEMERAL_PORTS.read_text().split()[0]) if EPHEMERAL_PORTS.is_file() else 0
    candidates = range(LOWEST_PORT, first_outgoing)
    for port in random.SystemRandom().sample(candidates, min(PORTS_TRIED, len(candidates))):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(
    function: Callable[..., Any], rank_env: RankEnvironment, args: tuple[Any, ...], context: BaseContext
) -> _Rank:
    stacks, rank_stacks = context.Pipe(duplex=False)
    # No daemon: a rank starts loader processes.
    worker = start_worker(
        _run_rank, function, rank_env, args, rank_stacks, context=context, name=f"rank {rank_env.rank}", daemon=False
    )
    rank_stacks.close()
    return _Rank(worker, stacks)


def _results(watch: _Watch, timeout_seconds: float) -> list[Any]:
    first = watch.first_failed()
    if first is not None:
        raise _as_error(first, watch.ranks[first])
    if hanging := watch.unfinished():
        stacks = "\n".join(f"rank {number} was at\n{_stacks_of(watch.ranks[number])}" for number in hanging)
        raise PeerError(f"ranks {hanging} did not finish within {timeout_seconds:g} s\n{stacks}")
    for rank in watch.ranks:
        rank.worker.process.join(EXIT_SECONDS)
    return [rank.outcome.value for rank in watch.ranks if isinstance(rank.outcome, _Result)]


def _as_error(number: int, rank: _Rank) -> RankFailedError:
    if isinstance(rank.outcome, Failure):
        return RankFailedError(number, rank.outcome.error, rank.outcome.description)
    end = rank.worker.describe_end()
    return RankFailedError(number, None, end, process_exit_code=rank.worker.process.exitcode)


def _stacks_of(rank: _Rank) -> str:
    assert rank.worker.process.pid is not None
    os.kill(rank.worker.process.pid, STACKS_SIGNAL)
    if not rank.stacks.poll(CONSEQUENCE_SECONDS):
        return "  (no answer)"
    time.sleep(CONSEQUENCE_SECONDS)  # the stacks of all threads arrive in many small writes
    return os.read(rank.stacks.fileno(), 1 << 16).decode(errors="replace")


def _forward_signal(number: int, ranks: list[_Rank]) -> None:
    """Forwards a stop signal to the ranks, which save a checkpoint and report."""
    for rank in ranks:
        if rank.worker.process.is_alive() and rank.worker.process.pid is not None:
            os.kill(rank.worker.process.pid, number)


def _kill(ranks: list[_Rank]) -> None:
    for rank in ranks:
        rank.worker.process.kill()  # all before any is waited for; SIGTERM would make them save and wait for each other
    for rank in ranks:
        rank.worker.kill()
        rank.stacks.close()


def _run_rank(
    send: Callable[[_Result], None],
    function: Callable[..., Any],
    rank_env: RankEnvironment,
    args: tuple[Any, ...],
    stacks: Connection,
) -> None:
    """Runs in the rank's process."""
    faulthandler.register(STACKS_SIGNAL, file=stacks.fileno(), all_threads=True)
    send(_Result(function(rank_env, *args)))
