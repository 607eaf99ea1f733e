"""Number of packed sequences that a trunk replica keeps between their forward and backward pass.

Layout -> the fewest with which a gradient ever returns, and enough to keep every branch busy
"""

from collections.abc import Mapping
from math import gcd

from ufork.errors import ConfigError
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import BRANCHES, Layout, Stage
from ufork.vocabulary import Task

MIN_IN_FLIGHT = 4
"""Least that a layout gets by default: one more per branch than the fewest that keep two equal branches busy."""


def sequences_in_flight(config: LayoutConfig, layout: Layout) -> int:
    """Returns `layout.in_flight` of the recipe, or the default: `enough_in_flight`, and at least MIN_IN_FLIGHT."""
    if config.in_flight is not None or Stage.TRUNK not in layout.shapes:
        return config.in_flight or 1
    return max(MIN_IN_FLIGHT, enough_in_flight(layout))


def enough_in_flight(layout: Layout) -> int:
    """Returns the number with which every branch has a micro-batch to run and the next one waiting.

    More hardly shortens a step; fewer leave branches idle.
    """
    return 2 * sum(least_in_flight(layout, task) for task in layout.global_batch_size)


def least_in_flight(layout: Layout, task: Task) -> int:
    """Returns the fewest sequences of `task` that a trunk replica must keep for a gradient to return.

    The sequences of a trunk micro-batch (trunk dp of them) end somewhere inside a branch's micro-batch (branch dp),
    which must be filled before it runs: with at most branch dp - gcd further sequences.
    """
    trunk, branch = layout.shapes[Stage.TRUNK].dp, layout.shapes[BRANCHES[task]].dp
    return -(-(trunk + branch - gcd(trunk, branch)) // trunk)


def can_progress(layout: Layout, forwards: Mapping[Task, int], backwards: Mapping[Task, int], in_flight: int) -> bool:
    """Whether the trunk could still run some task to its end within the limit.

    Args:
        layout: the stages and their packed sequences.
        forwards: forwards that a trunk replica has run, by task.
        backwards: its backwards.
        in_flight: the limit.
    """
    counts = layout.num_micro_batches(Stage.TRUNK)
    flying = {task: forwards[task] - backwards[task] for task in counts}
    missing = {task: max(0, least_in_flight(layout, task) - flying[task]) for task in counts}
    return any(
        sum(flying.values()) + (missing[task] if forwards[task] < counts[task] else 0) <= in_flight for task in counts
    )


def require_progress(layout: Layout, in_flight: int) -> None:
    """Checks that a trunk that trains cannot deadlock; layouts without a trunk stage always pass.

    Raises:
        ConfigError: a branch needs more sequences for one micro-batch than `in_flight` lets the trunk keep.
    """
    if Stage.TRUNK not in layout.shapes:
        return
    needed = {task: least_in_flight(layout, task) for task in layout.global_batch_size}
    task = max(needed, key=lambda task: needed[task])
    if needed[task] > in_flight:
        trunk, branch = layout.shapes[Stage.TRUNK].dp, layout.shapes[BRANCHES[task]].dp
        raise ConfigError(
            f"layout.in_flight={in_flight} deadlocks; use at least {needed[task]}: the {branch} replicas of the {task}"
            f" stage start together, so each of the {trunk} trunk replicas must keep ({trunk} + {branch} -"
            f" {gcd(trunk, branch)}) / {trunk} = {needed[task]} sequences (rounded up) before a gradient returns."
            f" Otherwise bring trunk.dp={trunk} and {task}.dp={branch} closer"
        )
