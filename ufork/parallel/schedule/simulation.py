"""A schedule played through in simulated time: how long a step takes, who idles, and how short it could be.

schedule + layout + seconds of each pass -> begin and end of every action
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ufork.parallel.layout import BRANCHES, Layout, Stage
from ufork.parallel.schedule.actions import Action, Pass, Schedule, StageTimes, inputs_of, room_for
from ufork.vocabulary import Task


@dataclass(frozen=True, kw_only=True)
class Span:
    """An action and when it runs, in seconds from the step's begin."""

    action: Action
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.end - self.begin


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A step in simulated time."""

    spans: Mapping[Stage, tuple[Span, ...]]
    """Of each stage, in the order of its list; all replicas of a stage run alike."""

    @property
    def seconds(self) -> float:
        """Of the step, to the end of the last action."""
        return max(spans[-1].end for spans in self.spans.values())

    def idle_share(self, stage: Stage) -> float:
        """The bubble: the part of the step, 0 to 1, in which `stage` has nothing to run."""
        return 1 - sum(span.seconds for span in self.spans[stage]) / self.seconds


def simulate(schedule: Schedule, layout: Layout, times: StageTimes, *, buffers: int | None = None) -> Simulation:
    """Runs every list in its order, each action as soon as its inputs are there.

    Sends take no time of their stage: results arrive `times.transfer_seconds` after the end of their action.

    Args:
        schedule: of all present stages.
        layout: what it was made for.
        times: of this run; they need not be those that the schedule was made for.
        buffers: rows that may be on their way between two replicas in one direction, from the begin of the action that
            makes them to that of the one that takes them; a stage waits for room. None: any number.
    """
    run = _Run(schedule, layout, times, buffers)
    while any([run.advance(stage) for stage in schedule]):
        pass
    waiting = [f"{stage} for {actions[len(run.spans[stage])]}" for stage, actions in run.remaining()]
    assert not waiting, f"deadlock: {', '.join(waiting)}"
    return Simulation(spans={stage: tuple(spans) for stage, spans in run.spans.items()})


def most_in_flight(actions: Sequence[Action]) -> int:
    """Micro-batches whose activations a replica of a stage keeps at the same time; none if it has forwards only."""
    if all(action.direction is Pass.FORWARD for action in actions):
        return 0
    most = now = 0
    for action in actions:
        now += 1 if action.direction is Pass.FORWARD else -1
        most = max(most, now)
    return most


def floor_seconds(layout: Layout, times: StageTimes, *, trunk_trains: bool = True) -> float:
    """Seconds below which no schedule can bring a step: the busiest stage's work, or the longest way through a branch.

    A branch cannot begin before the trunk has run the forwards of its first micro-batch, and the trunk cannot end
    before the backwards of the branch's last. Transfers are not counted.
    """
    tasks = layout.global_batch_size
    if Stage.COLOCATED in layout.shapes:
        counts = layout.num_micro_batches(Stage.COLOCATED)
        return sum(counts[task] * times.both(Stage.COLOCATED, task) for task in tasks)
    counts = layout.num_micro_batches(Stage.TRUNK)
    trunk = sum(counts[task] * _trunk_seconds(times, task, trunk_trains) for task in tasks)
    return max(trunk, *(_way_seconds(layout, times, task, trunk_trains) for task in tasks))


def _way_seconds(layout: Layout, times: StageTimes, task: Task, trunk_trains: bool) -> float:
    branch = BRANCHES[task]
    at_each_end = -(-layout.shapes[branch].dp // layout.shapes[Stage.TRUNK].dp)
    count = layout.num_micro_batches(branch)[task]
    return at_each_end * _trunk_seconds(times, task, trunk_trains) + count * times.both(branch, task)


def _trunk_seconds(times: StageTimes, task: Task, trunk_trains: bool) -> float:
    return times.both(Stage.TRUNK, task) if trunk_trains else times.seconds[Stage.TRUNK, task, Pass.FORWARD]


class _Run:
    """How far each stage has come in its list."""

    def __init__(self, schedule: Schedule, layout: Layout, times: StageTimes, buffers: int | None):
        self.schedule, self.layout, self.times, self.buffers = schedule, layout, times, buffers
        self.spans: dict[Stage, list[Span]] = {stage: [] for stage in schedule}
        self.ran: dict[tuple[Stage, Action], Span] = {}
        self.to_run = {(stage, action) for stage, actions in schedule.items() for action in actions}

    def remaining(self) -> list[tuple[Stage, tuple[Action, ...]]]:
        """Stages whose list is not at its end."""
        return [(stage, actions) for stage, actions in self.schedule.items() if len(self.spans[stage]) < len(actions)]

    def advance(self, stage: Stage) -> bool:
        """Runs what can run; whether anything did."""
        spans, actions = self.spans[stage], self.schedule[stage]
        came_to = len(spans)
        while len(spans) < len(actions) and (begin := self._begin(stage, actions[len(spans)])) is not None:
            action = actions[len(spans)]
            span = Span(action=action, begin=begin, end=begin + self.times.of(stage, action))
            self.ran[stage, action] = span
            spans.append(span)
        return len(spans) > came_to

    def _begin(self, stage: Stage, action: Action) -> float | None:
        """When `action` can begin; None if that is not known yet."""
        inputs = inputs_of(self.layout, stage, action)
        room = self._room(stage, action)
        if any(needed not in self.ran for needed in (*inputs, *room)):
            return None
        arrivals = [self.ran[needed].end + self.times.transfer_seconds for needed in inputs]
        free = self.spans[stage][-1].end if self.spans[stage] else 0.0
        return max(free, *arrivals, *(self.ran[needed].begin for needed in room), 0.0)

    def _room(self, stage: Stage, action: Action) -> list[tuple[Stage, Action]]:
        room = None if self.buffers is None else room_for(self.layout, stage, action, buffers=self.buffers)
        return [room] if room in self.to_run else []
