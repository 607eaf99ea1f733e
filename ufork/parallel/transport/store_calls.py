"""Calls of the job's store that always end.

Rank 0, or its launcher, serves the store. If that process is gone, calls fail; if it is stopped, they block whatever
time limit they have: torch waits for the server to confirm that a wait is cancelled.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch.distributed as dist

STORE_SECONDS = 1.0
"""Time in which the store answers a call, beyond the time that the call is meant to wait."""

Result = TypeVar("Result")


def in_time(call: Callable[[], Result], seconds: float) -> Result:
    """Returns what `call` returns, within `seconds`.

    Raises:
        DistError: `call` raised it, or the store does not answer (DistNetworkError); the call then blocks a thread.
    """
    outcomes: SimpleQueue[tuple[Result | None, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcomes.put((call(), None))
        except Exception as error:
            outcomes.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcomes.get(timeout=seconds)
    except Empty:
        raise dist.DistNetworkError("the job's store does not answer") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
