"""Which pass the trunk runs next, so that the slowest stage never waits for work.

    Layout + seconds of each pass -> a path per task -> the step played through under each policy -> the shortest one

Branches run what arrives, so the trunk's order decides the whole step. A *policy* says which task's forward comes next
and whether it comes before a backward that could run too. Each of the few is played through in simulated time.
"""

import math
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import product

from ufork.parallel.layout import BRANCHES, Layout, Stage
from ufork.parallel.schedule.actions import Pass, StageTimes
from ufork.parallel.schedule.in_flight import least_in_flight
from ufork.vocabulary import Task

_SAME = 1e-9
"""Relative difference of two steps' seconds below which they are equally long, whatever the rounding."""

Turn = tuple[Pass, Task]


def trunk_order(layout: Layout, times: StageTimes, *, in_flight: int, trunk_trains: bool) -> list[Turn]:
    """The trunk's passes in turn; arguments as of `make_schedule`."""
    best, shortest = None, math.inf
    for next_task, first in product(_NextTask, _First):
        play = _Play(layout, times, next_task, first, in_flight=in_flight, trunk_trains=trunk_trains)
        turns, seconds = play.to_the_end()
        if seconds < shortest * (1 - _SAME):
            best, shortest = turns, seconds
    assert best is not None
    return best


class _NextTask(Enum):
    """Whose forward comes next."""

    BY_TURNS = auto()
    """Spread evenly by counts."""
    LONGEST = auto()
    """Of the branch that would end last."""
    HUNGRIEST = auto()
    """Of the branch that first runs out of work."""


class _First(Enum):
    """What comes first where a forward and a backward both could."""

    BACKWARD = auto()
    FORWARD = auto()
    HUNGRY = auto()
    """A forward only if its branch would otherwise wait."""


@dataclass(kw_only=True)
class _Path:
    """One task's way through trunk and branch, and how far it has come. Counts are of the trunk's micro-batches."""

    task: Task
    count: int
    trunk_dp: int
    branch_dp: int
    least: int
    forward: float
    backward: float
    branch: float
    transfer: float
    forwards: int = 0
    backwards: int = 0
    branch_free: float = 0.0
    """When the branch has run all that it can run so far."""
    returns: list[float] = field(default_factory=list)
    """When each branch micro-batch that can run so far lets go of its rows in the trunk."""

    @property
    def flying(self) -> int:
        return self.forwards - self.backwards

    @property
    def is_done(self) -> bool:
        return self.backwards == self.count

    @property
    def backward_at(self) -> float:
        """When the next backward can run."""
        needed = ((self.backwards + 1) * self.trunk_dp - 1) // self.branch_dp
        return self.returns[needed] if needed < len(self.returns) else math.inf

    def branch_end(self, clock: float) -> float:
        """When the branch has run the whole step, at the earliest."""
        left = self.count * self.trunk_dp // self.branch_dp - len(self.returns)
        return max(self.branch_free, clock + self.forward + self.transfer) + left * self.branch

    def run_forward(self, end: float, *, trunk_trains: bool) -> None:
        """The trunk's forward ends; the branch runs what it now has all rows of."""
        self.forwards += 1
        while (len(self.returns) + 1) * self.branch_dp <= self.forwards * self.trunk_dp:
            begin = max(self.branch_free, end + self.transfer)
            self.branch_free = begin + self.branch
            self.returns.append(self.branch_free + self.transfer if trunk_trains else begin)


class _Play:
    """A step under one policy. A frozen trunk's backward takes no time: it stands for the branch taking the rows."""

    def __init__(
        self,
        layout: Layout,
        times: StageTimes,
        next_task: _NextTask,
        first: _First,
        *,
        in_flight: int,
        trunk_trains: bool,
    ):
        self.next_task, self.first, self.trunk_trains = next_task, first, trunk_trains
        self.paths = [_path(layout, times, task, trunk_trains) for task in Task if task in layout.global_batch_size]
        # rows on their way to a branch wait in its buffers, so a frozen trunk is never short of the least
        self.limit = in_flight if trunk_trains else max(in_flight, sum(path.least for path in self.paths))
        self.clock = 0.0
        self.turns: list[Turn] = []

    def to_the_end(self) -> tuple[list[Turn], float]:
        """The trunk's turns, and the seconds of the step."""
        while not all(path.is_done for path in self.paths):
            self._take_turn()
        return self.turns, max(self.clock, *(path.branch_free for path in self.paths))

    def _take_turn(self) -> None:
        ready = [path for path in self.paths if path.backward_at <= self.clock]
        backward = min(ready, key=lambda path: path.backward_at, default=None)
        forward = min(self._forwards_before(backward), key=self._rank, default=None)
        if forward:
            self.clock += forward.forward
            self.turns.append((Pass.FORWARD, forward.task))
            forward.run_forward(self.clock, trunk_trains=self.trunk_trains)
        elif backward:
            self.clock += backward.backward
            self.turns += [(Pass.BACKWARD, backward.task)] * self.trunk_trains
            backward.backwards += 1
        else:
            self.clock = min(path.backward_at for path in self.paths)
            assert self.clock < math.inf, "no pass can ever run"

    def _forwards_before(self, backward: _Path | None) -> list[_Path]:
        """Paths whose forward may come now, and by the policy before `backward`."""
        allowed = [path for path in self.paths if path.forwards < path.count and self._leaves_a_way_on(path)]
        if backward is None or self.first is _First.FORWARD:
            return allowed
        if self.first is _First.BACKWARD:
            return []
        later = self.clock + backward.backward
        return [path for path in allowed if path.branch_free < later + path.forward + path.transfer]

    def _rank(self, path: _Path) -> tuple[float, float]:
        """Smallest first."""
        end = path.branch_end(self.clock)
        match self.next_task:
            case _NextTask.BY_TURNS:
                return (path.forwards + 0.5) / path.count, -end
            case _NextTask.LONGEST:
                return -end, 0.0
            case _NextTask.HUNGRIEST:
                return path.branch_free - path.forward, -end

    def _leaves_a_way_on(self, chosen: _Path) -> bool:
        """Whether some task could still run to its end in the limit after one more forward of `chosen`."""
        flying = sum(path.flying for path in self.paths) + 1
        for path in self.paths:
            forwards = path.forwards + (path is chosen)
            to_gather = path.least - (forwards - path.backwards) if forwards < path.count else 0
            if flying + max(to_gather, 0) <= self.limit:
                return True
        return False


def _path(layout: Layout, times: StageTimes, task: Task, trunk_trains: bool) -> _Path:
    return _Path(
        task=task,
        count=layout.num_micro_batches(Stage.TRUNK)[task],
        trunk_dp=layout.shapes[Stage.TRUNK].dp,
        branch_dp=layout.shapes[BRANCHES[task]].dp,
        least=least_in_flight(layout, task),
        forward=times.seconds[Stage.TRUNK, task, Pass.FORWARD],
        backward=times.seconds[Stage.TRUNK, task, Pass.BACKWARD] if trunk_trains else 0.0,
        branch=times.both(BRANCHES[task], task),
        transfer=times.transfer_seconds,
    )
