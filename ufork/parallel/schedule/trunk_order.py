"""The order of the trunk's passes, which decides how long a step takes: branches run what arrives.

    lists of the branches + seconds of each pass -> step simulated twice, the trunk's next pass chosen as it goes
    -> the list of the shorter one

The next forward is of the task that has run the smaller share of its forwards, or in a tie of the branch that would end
last; the next backward is the one whose gradient arrives first. If both can run, backwards come first in one simulation
and forwards in the other. Where both take equally long, backwards come first: measured with transfers and jitter, that
was 3% shorter (balanced case of `benchmarks.y_schedule`).
"""

from ufork.parallel.layout import BRANCHES, Layout, Stage
from ufork.parallel.schedule.actions import Action, Pass, Schedule, StageTimes
from ufork.parallel.schedule.in_flight import can_progress
from ufork.parallel.schedule.simulation import Run
from ufork.vocabulary import Task

_ROUNDING = 1e-9
"""Relative difference of two steps' seconds below which they are equally long."""


def trunk_order(
    layout: Layout, times: StageTimes, branches: Schedule, *, in_flight: int, trunk_trains: bool
) -> tuple[Action, ...]:
    """Returns the trunk's list; `branches` are the lists of the branches, other arguments as of `make_schedule`."""
    limit = in_flight if trunk_trains else None
    run = _simulate(Run(layout, times, branches), limit, backward_first=trunk_trains)
    if trunk_trains:
        other = _simulate(Run(layout, times, branches), limit, backward_first=False)
        run = other if _seconds(other) < _seconds(run) * (1 - _ROUNDING) else run
    return tuple(span.action for span in run.spans[Stage.TRUNK])


def _simulate(run: Run, in_flight: int | None, *, backward_first: bool) -> Run:
    """Runs the step to its end; `in_flight` is None for a frozen trunk, which has no backwards and keeps nothing."""
    counts = run.layout.num_micro_batches(Stage.TRUNK)
    forwards = {task: 0 for task in Task if task in counts}  # in the same order on every rank
    backwards = dict(forwards)
    for _ in range(sum(counts.values()) * (1 if in_flight is None else len(Pass))):
        forward = _next_forward(run, counts, forwards, backwards, in_flight)
        backward = _next_backward(run, backwards)
        has_arrived = backward is not None and (run.arrival(Stage.TRUNK, backward) or 0.0) <= run.end(Stage.TRUNK)
        action = backward if forward is None or (backward_first and has_arrived) else forward
        assert action is not None, "deadlock: no pass of the trunk can run"
        passes = forwards if action.direction is Pass.FORWARD else backwards
        passes[action.task] += 1
        run.add(Stage.TRUNK, action)
        run.advance()
    return run


def _next_forward(
    run: Run, counts: dict[Task, int], forwards: dict[Task, int], backwards: dict[Task, int], in_flight: int | None
) -> Action | None:
    allowed = [
        task
        for task, number in forwards.items()
        if number < counts[task]
        and (in_flight is None or can_progress(run.layout, forwards | {task: number + 1}, backwards, in_flight))
    ]
    if not allowed:
        return None
    task = min(allowed, key=lambda task: (forwards[task] / counts[task], -_branch_end(run, task)))
    return Action(Pass.FORWARD, task, forwards[task])


def _next_backward(run: Run, backwards: dict[Task, int]) -> Action | None:
    actions = [Action(Pass.BACKWARD, task, number) for task, number in backwards.items()]
    arrivals = {action: run.arrival(Stage.TRUNK, action) for action in actions}
    known = {action: arrival for action, arrival in arrivals.items() if arrival is not None}
    return min(known, key=lambda action: known[action], default=None)


def _branch_end(run: Run, task: Task) -> float:
    """Time at which the branch of `task` would end if the trunk ran a forward of it now and never kept it waiting."""
    branch, times = BRANCHES[task], run.times
    arrival = run.end(Stage.TRUNK) + times.seconds[Stage.TRUNK, task, Pass.FORWARD] + times.transfer_seconds
    num_left = run.layout.num_micro_batches(branch)[task] - len(run.spans[branch]) // len(Pass)
    return max(run.end(branch), arrival) + num_left * times.both(branch, task)


def _seconds(run: Run) -> float:
    return max(run.end(stage) for stage in run.spans)
