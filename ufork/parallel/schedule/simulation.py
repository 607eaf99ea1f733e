"""A step in simulated time: how long it takes, how long each stage idles, and how short it could be.

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
        """Duration."""
        return self.end - self.begin


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A step in simulated time."""

    spans: Mapping[Stage, tuple[Span, ...]]
    """Spans by stage, in the order of its list; all replicas of a stage run the same actions at the same times."""

    @property
    def seconds(self) -> float:
        """Duration of the step, to the end of the last action."""
        return max(spans[-1].end for spans in self.spans.values())

    def idle_share(self, stage: Stage) -> float:
        """The bubble: the share of the step, 0 to 1, in which `stage` runs nothing."""
        return 1 - sum(span.seconds for span in self.spans[stage]) / self.seconds


def simulate(schedule: Schedule, layout: Layout, times: StageTimes, *, buffers: int | None = None) -> Simulation:
    """Runs every list in its order, each action as soon as its inputs are there.

    Sends take no time of their stage: results arrive `times.transfer_seconds` after the end of their action.

    Args:
        schedule: lists of all present stages.
        layout: the layout it was made for.
        times: seconds in this run; they need not be those that the schedule was made for.
        buffers: sequences that may be on their way between two replicas in one direction, from the begin of the action
            that sends them to that of the one that takes them; a stage waits for room. None: any number.
    """
    run = Run(layout, times, schedule, buffers=buffers)
    run.advance()
    waiting = [
        f"{stage} for {actions[len(run.spans[stage])]}"
        for stage, actions in schedule.items()
        if len(run.spans[stage]) < len(actions)
    ]
    assert not waiting, f"deadlock: {', '.join(waiting)}"
    return Simulation(spans={stage: tuple(spans) for stage, spans in run.spans.items()})


class Run:
    """A step as far as it has been simulated.

    Attributes:
        spans: what each stage has run.
    """

    def __init__(self, layout: Layout, times: StageTimes, lists: Schedule, *, buffers: int | None = None):
        """`lists` are run by `advance`; actions of a stage without a list are added one by one."""
        self.layout, self.times, self.lists, self.buffers = layout, times, lists, buffers
        self.spans: dict[Stage, list[Span]] = {stage: [] for stage in layout.shapes}
        self._ran: dict[tuple[Stage, Action], Span] = {}
        self._to_run = {(stage, action) for stage, actions in lists.items() for action in actions}

    def end(self, stage: Stage) -> float:
        """Time at which `stage` has run all actions added so far."""
        return self.spans[stage][-1].end if self.spans[stage] else 0.0

    def arrival(self, stage: Stage, action: Action) -> float | None:
        """Time at which `action` has its inputs and room for its results; None while one it waits for has not run."""
        inputs, room = inputs_of(self.layout, stage, action), self._room(stage, action)
        if any(needed not in self._ran for needed in (*inputs, *room)):
            return None
        arrivals = [self._ran[needed].end + self.times.transfer_seconds for needed in inputs]
        return max([0.0, *arrivals, *(self._ran[needed].begin for needed in room)])

    def add(self, stage: Stage, action: Action) -> None:
        """Runs `action`, whose arrival is known, after all that `stage` has run."""
        arrival = self.arrival(stage, action)
        assert arrival is not None, f"{stage}: {action} waits for an action that has not run"
        begin = max(self.end(stage), arrival)
        span = Span(action=action, begin=begin, end=begin + self.times.of(stage, action))
        self._ran[stage, action] = span
        self.spans[stage].append(span)

    def advance(self) -> None:
        """Runs the lists as far as they can."""
        while any([self._advance(stage) for stage in self.lists]):
            pass

    def _advance(self, stage: Stage) -> bool:
        actions, before = self.lists[stage], len(self.spans[stage])
        for action in actions[before:]:
            if self.arrival(stage, action) is None:
                break
            self.add(stage, action)
        return len(self.spans[stage]) > before

    def _room(self, stage: Stage, action: Action) -> list[tuple[Stage, Action]]:
        room = None if self.buffers is None else room_for(self.layout, stage, action, buffers=self.buffers)
        return [room] if room in self._to_run else []


def most_in_flight(actions: Sequence[Action]) -> int:
    """Returns how many micro-batches' activations a replica keeps at the same time; 0 if it runs forwards only."""
    if all(action.direction is Pass.FORWARD for action in actions):
        return 0
    most = now = 0
    for action in actions:
        now += 1 if action.direction is Pass.FORWARD else -1
        most = max(most, now)
    return most


def floor_seconds(layout: Layout, times: StageTimes, *, trunk_trains: bool = True) -> float:
    """Returns a lower bound of a step's seconds: the busiest stage's work, or the longest path through a branch.

    A branch cannot begin before the trunk has run the forwards of its first micro-batch, and the trunk cannot end
    before the backwards of the branch's last. Transfers are not counted.
    """
    tasks = layout.global_batch_size
    if Stage.COLOCATED in layout.shapes:
        counts = layout.num_micro_batches(Stage.COLOCATED)
        return sum(counts[task] * times.both(Stage.COLOCATED, task) for task in tasks)
    counts = layout.num_micro_batches(Stage.TRUNK)
    trunk = sum(counts[task] * _trunk_seconds(times, task, trunk_trains) for task in tasks)
    return max(trunk, *(_path_seconds(layout, times, task, trunk_trains) for task in tasks))


def _path_seconds(layout: Layout, times: StageTimes, task: Task, trunk_trains: bool) -> float:
    branch = BRANCHES[task]
    at_each_end = -(-layout.shapes[branch].dp // layout.shapes[Stage.TRUNK].dp)
    count = layout.num_micro_batches(branch)[task]
    return at_each_end * _trunk_seconds(times, task, trunk_trains) + count * times.both(branch, task)


def _trunk_seconds(times: StageTimes, task: Task, trunk_trains: bool) -> float:
    return times.both(Stage.TRUNK, task) if trunk_trains else times.seconds[Stage.TRUNK, task, Pass.FORWARD]
