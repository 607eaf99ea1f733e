"""Ends the groups of a rank that fails, so that it can leave although a peer never answers."""

import contextlib
import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

log = logging.getLogger(__name__)

ABORT_SECONDS = 30.0
"""Time in which groups are expected to be aborted."""


def abort_groups(groups: Sequence[Any]) -> bool:
    """Aborts `groups` and returns whether all were in time; what runs on the device ends, with undefined results.

    All at once: an abort waits for the group's kernels, which may be queued behind those of another group
    (pytorch#119797).
    """
    threads = [threading.Thread(target=_abort, args=(group,), daemon=True) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ABORT_SECONDS)
    late = sum(thread.is_alive() for thread in threads)
    if late:
        log.error("%d of %d groups could not be aborted in %g s", late, len(groups), ABORT_SECONDS)
    return not late


def _abort(group: Any) -> None:
    with contextlib.suppress(dist.DistError, RuntimeError):  # the rank already leaves with an error, which this hides
        group.abort()
