"""Work that the leader does alone while the other ranks wait for it, such as drawing.

    leader: under_way, show_alive ... show_alive      other ranks: wait, as long as the leader shows that it lives

How long such work takes depends on the recipe and the machine, so no time limit fits it. The time-out of transfers
limits only how long the leader may be silent. The ranks wait at the job's store: in the next step's first collective,
where they would be otherwise, the time-out would end the job.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from ufork.errors import PeerError
from ufork.parallel.transport.stage_world import POLL_SECONDS, World
from ufork.parallel.transport.store_calls import in_time

SIGNS_PER_TIMEOUT = 4
"""How often the leader gives a sign of life within the time-out, but at least every LONGEST_SIGN_SECONDS."""
LONGEST_SIGN_SECONDS = 5.0
_DONE, _FAILED = "done", "failed"


class LeaderWork:
    """One piece of work, known to all ranks by its name."""

    def __init__(self, world: World, name: str):
        """Names the work; each name is used once in a job."""
        self.world, self.name = world, name
        self._sign_seconds = min(LONGEST_SIGN_SECONDS, world.timeout_seconds / SIGNS_PER_TIMEOUT)
        self._shown = -float("inf")

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Releases the other ranks when the body ends, those that wait with an error if it raises; for the leader."""
        try:
            yield
        except BaseException:
            self.world.store.set(self._end, _FAILED)
            raise
        self.world.store.set(self._end, _DONE)

    def show_alive(self) -> None:
        """Shows the other ranks that the work proceeds; cheap enough to be called at every small step of it."""
        now = time.monotonic()
        if now - self._shown >= self._sign_seconds:
            self._shown = now
            self.world.store.add(self._signs, 1)

    def wait(self) -> None:
        """Waits until the leader has done the work.

        Raises:
            PeerError: the leader has failed, is gone, or has shown no sign of life for the world's time-out.
        """
        waiting = f"{self.world.coordinate} waited for {self.name} by the leader"
        try:
            end = self._await_end()
        except dist.DistNetworkError as error:
            raise PeerError(f"{waiting}, but rank 0 is gone ({error})", cause=str(error)) from error
        if end is None:
            raise PeerError(
                f"{waiting}, which shows no sign of life for {self.world.timeout_seconds:g} s; see its log",
                timed_out=True,
            )
        if end == _FAILED:
            raise PeerError(f"{waiting}, which has failed; see its log")

    def _await_end(self) -> str | None:
        """Returns how the work ended; None if the leader is silent for the time-out."""
        signs, seen = 0, time.monotonic()
        while True:
            end, newest = in_time(self._look, self.world.timeout_seconds)
            if end is not None:
                return end
            if newest != signs:
                signs, seen = newest, time.monotonic()
            elif time.monotonic() - seen > self.world.timeout_seconds:
                return None
            time.sleep(min(POLL_SECONDS, self._sign_seconds))

    def _look(self) -> tuple[str | None, int]:
        """Returns how the work ended, None if it has not, and the signs of life."""
        store = self.world.store
        if store.check([self._end]):
            return store.get(self._end).decode(), 0
        return None, store.add(self._signs, 0)

    @property
    def _end(self) -> str:
        return f"leader/{self.name}/end"

    @property
    def _signs(self) -> str:
        return f"leader/{self.name}/signs"
