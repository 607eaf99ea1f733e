"""The order of the trunk's passes, which decides how long a step takes: branches run what arrives.

    lists of the branches + seconds of each pass -> simulated step in which the trunk's next pass is chosen -> its list

A forward runs first wherever the limit in flight allows one, so that branches do not wait for work. It is of the task
that has run the smaller share of its forwards, or in a tie of the branch that would end last. Otherwise the trunk runs
the backward whose gradient arrives first.
"""

from ufork.parallel.layout import BRANCHES, Layout, Stage
from ufork.parallel.schedule.actions import Action, Pass, Schedule, StageTimes
from ufork.parallel.schedule.in_flight import can_progress
from ufork.parallel.schedule.simulation import Run
from ufork.vocabulary import Task


def trunk_order(
    layout: Layout, times: StageTimes, branches: Schedule, *, in_flight: int, trunk_trains: bool
) -> tuple[Action, ...]:
    """Returns the trunk's list; `branches` are the lists of the branches, other arguments as of `make_schedule`."""
    counts = layout.num_micro_batches(Stage.TRUNK)
    forwards = {task: 0 for task in Task if task in counts}  # in the same order on every rank
    backwards = dict(forwards)
    run = Run(layout, times, branches)
    for _ in range(sum(counts.values()) * (1 + trunk_trains)):
        ended = {task: (forwards[task] / counts[task], -_branch_end(run, task)) for task in forwards}
        for task in sorted((task for task in forwards if forwards[task] < counts[task]), key=lambda task: ended[task]):
            after = forwards | {task: forwards[task] + 1}
            if not trunk_trains or can_progress(layout, after, backwards, in_flight):
                action, forwards = Action(Pass.FORWARD, task, forwards[task]), after
                break
        else:
            action = _first_backward(run, backwards)
            backwards[action.task] += 1
        run.add(Stage.TRUNK, action)
        run.advance()
    return tuple(span.action for span in run.spans[Stage.TRUNK])


def _first_backward(run: Run, backwards: dict[Task, int]) -> Action:
    arrivals = {}
    for task, number in backwards.items():
        action = Action(Pass.BACKWARD, task, number)
        if (arrival := run.arrival(Stage.TRUNK, action)) is not None:
            arrivals[action] = arrival
    return min(arrivals, key=lambda action: arrivals[action])


def _branch_end(run: Run, task: Task) -> float:
    """When the branch of `task` would end if the trunk ran a forward of it now and never kept it waiting afterwards."""
    branch, times = BRANCHES[task], run.times
    arrival = run.end(Stage.TRUNK) + times.seconds[Stage.TRUNK, task, Pass.FORWARD] + times.transfer_seconds
    num_left = run.layout.num_micro_batches(branch)[task] - len(run.spans[branch]) // len(Pass)
    return max(run.end(branch), arrival) + num_left * times.both(branch, task)
