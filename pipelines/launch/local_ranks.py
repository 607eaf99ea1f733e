"""Ranks as processes of this machine: started together, watched together, ended together.

    start_local_ranks -> N processes, each calls function(address, *args)
                      -> outcomes read from one pipe a rank, while watching for ranks that die without a word
                      -> every result, or the first failure after the others are ended

A rank never outlives the process that started it, however that one ends: each rank watches for it in a thread.
"""

import faulthandler
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from pipelines.launch.stop_signals import handled
from ufork.errors import PeerError, UforkError
from ufork.parallel.rank_environment import RankEnvironment
from ufork.processes.child import end_with_starter

CONSEQUENCE_SECONDS = 0.3
"""How long after the first failure others are still heard: a rank that was killed says nothing itself, and what its
peers say about the lost connection may arrive earlier."""
EXIT_SECONDS = 3.0
"""How long a rank that has given its result may take to end."""
WHEREABOUTS_SIGNAL = signal.SIGRTMIN
"""Asks a rank for its stacks; the usual ones are taken for stopping."""


class RankFailedError(PeerError):
    """The first rank of a job that failed, and how."""

    def __init__(self, rank: int, cause: BaseException | None, description: str) -> None:
        super().__init__(f"rank {rank}: {description}")
        self.rank = rank
        self.cause = cause
        """What the rank raised, with its traceback as a note; None when it died or its error cannot be sent."""
        if isinstance(cause, UforkError):
            self.exit_code = cause.exit_code


@dataclass(frozen=True)
class _Failure:
    """What a rank says of its own failure."""

    seconds: float
    """On the machine's monotonic clock, which all its processes share."""
    description: str
    pickled_cause: bytes | None


@dataclass
class _Rank:
    """The starter's view of one rank."""

    process: BaseProcess
    outcomes: Connection
    whereabouts: Connection
    """Raw text: the stacks of a rank that was asked for them."""
    result: Any = None
    failure: _Failure | None = None
    finished: bool = False
    died: bool = False
    """Ended without a word."""


@dataclass
class _Watch:
    """Reads outcomes until all ranks have finished or one has failed."""

    ranks: list[_Rank]
    deadline: float = field(default=float("inf"))

    def until_decided(self) -> None:
        while not all(rank.finished for rank in self.ranks) and not self._failed() and time.monotonic() < self.deadline:
            self._hear(self.deadline)
        if self._failed():
            consequence_deadline = time.monotonic() + CONSEQUENCE_SECONDS
            while time.monotonic() < consequence_deadline and not all(rank.finished for rank in self.ranks):
                self._hear(consequence_deadline)

    def first_failed(self) -> int | None:
        """A rank that died comes before those that raised, since they may have raised for it."""
        failed = self._failed()
        return min(failed, key=lambda n: self._order(self.ranks[n])) if failed else None

    def unfinished(self) -> list[int]:
        return [number for number, rank in enumerate(self.ranks) if not rank.finished]

    def _failed(self) -> list[int]:
        return [number for number, rank in enumerate(self.ranks) if rank.died or rank.failure]

    @staticmethod
    def _order(rank: _Rank) -> float:
        return rank.failure.seconds if rank.failure else float("-inf")

    def _hear(self, until: float) -> None:
        speaking = {rank.outcomes: rank for rank in self.ranks if not rank.finished}
        seconds = None if until == float("inf") else max(0.0, until - time.monotonic())
        for connection in wait(list(speaking), seconds):
            rank = speaking[connection]  # type: ignore[index]
            rank.finished = True
            try:
                outcome = pickle.loads(rank.outcomes.recv_bytes())
            except EOFError:
                rank.died = True
            else:
                rank.failure = outcome if isinstance(outcome, _Failure) else None
                rank.result = None if rank.failure else outcome[0]


def start_local_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    *args: Any,
    context: BaseContext,
    timeout_seconds: float = float("inf"),
) -> list[Any]:
    """Calls `function(address, *args)` on `num_ranks` new processes of this machine and waits for all of them.

    Args:
        function: importable by name in a new process, as are `args` by pickle.
        num_ranks: processes to start.
        args: handed to every rank after its address.
        context: how processes come into being (multiprocessing's spawn or forkserver).
        timeout_seconds: past it all ranks are ended.

    Returns:
        what each rank returned, in the order of ranks; tensors arrive as copies.

    Raises:
        RankFailedError: the first rank that raised or died; the others have been ended.
        PeerError: some ranks did not finish in time; the message shows where each of them was.
    """
    port = free_port()
    ranks = []
    try:
        for number in range(num_ranks):
            rank_env = RankEnvironment(
                rank=number, world_size=num_ranks, local_rank=number, master_address="127.0.0.1", master_port=port
            )
            ranks.append(_start(function, rank_env, args, context))
        watch = _Watch(ranks, time.monotonic() + timeout_seconds)
        with handled(lambda number, _: _pass_on(number, ranks)):
            watch.until_decided()
        return _results(watch, timeout_seconds)
    finally:
        _end(ranks)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(
    function: Callable[..., Any], rank_env: RankEnvironment, args: tuple[Any, ...], context: BaseContext
) -> _Rank:
    outcomes, rank_outcomes = context.Pipe(duplex=False)
    whereabouts, rank_whereabouts = context.Pipe(duplex=False)
    process = context.Process(  # type: ignore[attr-defined]
        target=_be_rank, args=(function, rank_env, args, rank_outcomes, rank_whereabouts), name=f"rank {rank_env.rank}"
    )
    process.start()
    rank_outcomes.close()  # the rank holds the only one now, so that its death ends the pipe
    rank_whereabouts.close()
    return _Rank(process, outcomes, whereabouts)


def _results(watch: _Watch, timeout_seconds: float) -> list[Any]:
    first = watch.first_failed()
    if first is not None:
        raise _as_error(first, watch.ranks[first])
    if hanging := watch.unfinished():
        where = "\n".join(f"rank {number} was at\n{_ask_where(watch.ranks[number])}" for number in hanging)
        raise PeerError(f"ranks {hanging} did not finish within {timeout_seconds:g} s\n{where}")
    for rank in watch.ranks:
        rank.process.join(EXIT_SECONDS)
    return [rank.result for rank in watch.ranks]


def _as_error(number: int, rank: _Rank) -> RankFailedError:
    if rank.failure is None:
        rank.process.join(EXIT_SECONDS)
        return RankFailedError(number, None, f"died {_describe_exit(rank.process.exitcode)}")
    cause = pickle.loads(rank.failure.pickled_cause) if rank.failure.pickled_cause else None
    return RankFailedError(number, cause, rank.failure.description)


def _ask_where(rank: _Rank) -> str:
    assert rank.process.pid is not None
    os.kill(rank.process.pid, WHEREABOUTS_SIGNAL)
    if not rank.whereabouts.poll(CONSEQUENCE_SECONDS):
        return "  (no answer)"
    time.sleep(CONSEQUENCE_SECONDS)  # the stacks of all threads come in many small writes
    return os.read(rank.whereabouts.fileno(), 1 << 16).decode(errors="replace")


def _describe_exit(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"with exit code {exit_code} and no message"
    name = signal.Signals(-exit_code).name
    hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
    return f"by {name}{hint}"


def _pass_on(number: int, ranks: list[_Rank]) -> None:
    """A signal to stop is for the ranks: they save what they have and say so."""
    for rank in ranks:
        if rank.process.is_alive() and rank.process.pid is not None:
            os.kill(rank.process.pid, number)


def _end(ranks: list[_Rank]) -> None:
    for rank in ranks:
        rank.process.kill()  # asked politely, they would save and go on waiting for each other
    for rank in ranks:
        rank.process.join()
        rank.outcomes.close()
        rank.whereabouts.close()


def _be_rank(
    function: Callable[..., Any],
    rank_env: RankEnvironment,
    args: tuple[Any, ...],
    outcomes: Connection,
    whereabouts: Connection,
) -> None:
    """The whole life of a rank's process."""
    end_with_starter()
    faulthandler.register(WHEREABOUTS_SIGNAL, file=whereabouts.fileno(), all_threads=True)
    try:
        message = pickle.dumps((function(rank_env, *args),))
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)  # the starter was interrupted too and says so
    except BaseException as error:
        outcomes.send_bytes(pickle.dumps(_failure_of(error)))
        sys.stderr.flush()
        os._exit(1)  # no waiting at exit for peers that are about to be ended
    outcomes.send_bytes(message)


def _failure_of(error: BaseException) -> _Failure:
    seconds = time.monotonic()
    text = "".join(traceback.format_exception(error))
    description = str(error) if isinstance(error, UforkError) else f"{type(error).__name__}: {error}\n{text}"
    try:
        error.add_note(f"as raised on the rank:\n{text}")
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # an error whose constructor wants other arguments than it kept breaks only here
    except Exception:
        pickled = None
    return _Failure(seconds, description, pickled)
