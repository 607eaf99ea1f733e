"""Finds which rank is lost: after a failure all ranks answer a roll call in the job's store.

    a rank fails -> its own error, or that it lost a peer; and the call
                 -> every rank answers: whether it waits for other ranks, and what it does otherwise
                 -> who raised, who does not answer, who does not wait -> the error of every rank that lost a peer

A rank that waits knows only for what: in a sum of the whole job any rank may be the one that is missing. A thread of
each rank answers while the main thread waits, so the ranks need not fail at the same time. Until the call it sleeps in
a connection of its own to the store, and costs a step nothing.
"""

import contextlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ufork.errors import PeerError, first_line
from ufork.parallel.layout import MeshCoordinate
from ufork.parallel.transport.lost_peer import is_about_a_peer
from ufork.parallel.transport.store_calls import in_time

ANSWER_SECONDS = 5.0
"""Time in which ranks have to answer; by this the errors of the others are later than the time-out."""
SERVE_SECONDS = 1.0
"""Time that rank 0, which serves the store, leaves the others to read the answers."""
BUSY_SECONDS = 3.0
"""Time that a rank has to begin to wait for others, before it answers that it is busy."""
POLL_SECONDS = 0.1
LONGEST_WAIT = timedelta(days=20)
"""torch polls with milliseconds in 32 bits."""
SHOWN_RANKS = 4
"""Most ranks of a kind that a message names."""
WAITING_MODULES = ("torch.distributed.", "deepspeed.comm", "ufork.parallel.transport.")
"""Modules in which a rank waits for others."""
_CALLED, _ENDED = "called", "ended"


class RollCall:
    """One rank's part in the roll call of its job."""

    def __init__(self, store: dist.Store, coordinates: Sequence[MeshCoordinate], rank: int):
        """Begins to listen for the call; `store` is the job's, `rank` this rank."""
        self._coordinates, self._rank = coordinates, rank
        shared: Any = dist.PrefixStore("roll_call", store)  # torch's stubs lack append and clone
        self._store, self._own_store = shared, shared.clone()  # a wait occupies a connection
        self._reports: list[tuple[int, str]] = []
        self._reported, self._store_is_gone, self._finding = False, False, ""
        self._patience_seconds = ANSWER_SECONDS + 2 * SERVE_SECONDS  # less if the store does not take the call
        self._thread = threading.Thread(target=self._listen, name="roll call", daemon=True)
        self._thread.start()

    def report(self, error: BaseException) -> None:
        """Calls the roll because of `error`; before this rank closes connections, by which others notice its end."""
        if self._reported or self._store_is_gone:
            return
        self._reported = True
        own = "" if is_about_a_peer(error) else _line(error)
        try:
            in_time(lambda: self._begin(_CALLED, json.dumps([self._rank, own]) + "\n"), ANSWER_SECONDS)
        except dist.DistError:
            self._patience_seconds = SERVE_SECONDS  # enough to see whether the store is gone

    def explain(self, error: BaseException) -> BaseException:
        """Returns `error` with what the roll call has found, if it is about another rank; after `report`."""
        self._thread.join(self._patience_seconds)
        if not is_about_a_peer(error):
            return error
        finding = self._finding or self._without_answers()
        if isinstance(error, PeerError):
            words, fields = str(error), error.fields
        else:
            words, fields = (
                f"{self._coordinates[self._rank]} lost a rank of its stage ({_line(error)})",
                {"cause": str(error)},
            )
        return PeerError(f"{finding}: {words}" if finding else words, **fields)

    def end(self) -> None:
        """Ends the roll calls of a job that has done its work."""
        with contextlib.suppress(dist.DistError):
            in_time(lambda: self._begin(_ENDED, ""), SERVE_SECONDS)
        self._thread.join(SERVE_SECONDS)

    def _begin(self, how: str, report: str) -> None:
        self._store.append("reports", report)
        self._store.compare_set("begun", "", how)

    def _listen(self) -> None:
        try:
            self._own_store.wait(["begun"], LONGEST_WAIT)
            if self._own_store.get("begun") == _CALLED.encode():
                self._answer()
                self._read_answers()
        except dist.DistError:
            self._store_is_gone = True

    def _answer(self) -> None:
        """Answers, and first reads the reports: rank 0, if it has called, leaves when all have answered."""
        self._reports = self._read_reports()
        deadline = time.monotonic() + BUSY_SECONDS
        while (busy := _busy_with()) and not _raised(self._reports) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._own_store.append("answers", json.dumps([self._rank, busy]) + "\n")
        if self._own_store.add("answered", 1) == len(self._coordinates):
            self._own_store.set("complete", "")

    def _read_answers(self) -> None:
        with contextlib.suppress(dist.DistStoreError):
            self._own_store.wait(["complete"], timedelta(seconds=ANSWER_SECONDS))
        answers = dict(_lines(self._own_store.get("answers")))
        self._reports = self._read_reports()
        self._finding = find_lost(self._coordinates, answers, self._reports)
        if self._own_store.add("read", 1) >= len(answers):
            self._own_store.set("read by all", "")
        if self._rank == 0:
            with contextlib.suppress(dist.DistStoreError):
                self._own_store.wait(["read by all"], timedelta(seconds=SERVE_SECONDS))

    def _read_reports(self) -> list[tuple[int, str]]:
        return _lines(self._own_store.get("reports"))

    def _without_answers(self) -> str:
        """What is known if the store, and thus the process that serves it, has gone or stopped during the call."""
        if _raised(self._reports):
            return find_lost(self._coordinates, dict.fromkeys(range(len(self._coordinates)), ""), self._reports)
        if any(rank == 0 for rank, _ in self._reports):
            return f"{self._coordinates[0]} has left, see its log"
        if self._store_is_gone:
            return f"{self._coordinates[0]} is lost, and with it the job's store"
        return f"{self._coordinates[0]} does not answer, nor does the job's store" if self._thread.is_alive() else ""


@contextmanager
def answering_roll_calls(store: dist.Store, coordinates: Sequence[MeshCoordinate], rank: int) -> Iterator[RollCall]:
    """Names in errors about other ranks, which become PeerError, those that are lost; other errors are reported."""
    roll_call = RollCall(store, coordinates, rank)
    try:
        yield roll_call
    except BaseException as error:
        roll_call.report(error)
        explained = roll_call.explain(error)
        if explained is error:
            raise
        raise explained from error


def find_lost(
    coordinates: Sequence[MeshCoordinate], answers: Mapping[int, str], reports: Sequence[tuple[int, str]]
) -> str:
    """Returns which ranks are at fault, and why.

    Args:
        coordinates: of all ranks of the job.
        answers: by rank: what it was busy with, empty if it waited for other ranks.
        reports: ranks that have failed, the first one first, and their errors; empty if they have lost another rank.
    """
    failed = {rank for rank, _ in reports}
    faults = [f"{coordinates[rank]} raised {error}" for rank, error in _raised(reports)[:SHOWN_RANKS]]
    silent = [rank for rank in range(len(coordinates)) if rank not in answers and rank not in failed]
    faults += [f"{coordinates[rank]} does not answer, it died or hangs" for rank in silent[:SHOWN_RANKS]]
    if more := len(silent[SHOWN_RANKS:]):
        faults.append(f"{more} more ranks do not answer")
    if not faults:
        busy = [(rank, doing) for rank, doing in sorted(answers.items()) if doing and rank not in failed]
        faults = [
            f"{coordinates[rank]} waits for no other rank, it is in {doing}" for rank, doing in busy[:SHOWN_RANKS]
        ]
    return "; ".join(faults) or "all ranks answer, and wait for each other"


def _raised(reports: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    return [(rank, error) for rank, error in reports if error]


def _lines(text: bytes) -> list[Any]:
    return [tuple(json.loads(line)) for line in text.decode().splitlines()]


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _busy_with() -> str:
    """Returns where the main thread is; empty if a thread, which may be one of autograd's, waits for other ranks."""
    frames = sys._current_frames()
    del frames[threading.get_ident()]
    for innermost in frames.values():
        for frame, _ in traceback.walk_stack(innermost):
            if str(frame.f_globals.get("__name__")).startswith(WAITING_MODULES):
                return ""
    main = threading.main_thread().ident
    if main not in frames:
        return "its end"
    code, line = frames[main].f_code, frames[main].f_lineno
    return f"{code.co_name} ({Path(code.co_filename).name}:{line})"
