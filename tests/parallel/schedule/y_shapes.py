"""Layouts and stage times for tests of the schedule: by hand, and at random."""

from math import lcm

from hypothesis import strategies as st

from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import BRANCHES, Layout, Stage, make_layout
from ufork.parallel.schedule.actions import Pass, StageTimes
from ufork.vocabulary import Task

U, G = Task.UNDERSTANDING, Task.GENERATION


def y_layout(dp: tuple[int, int, int] = (1, 1, 1), *, sequences: dict[Task, int]) -> Layout:
    """Forked, with `dp` of trunk, understanding and generation."""
    trunk, understanding, generation = (StageShape(dp=number) for number in dp)
    config = LayoutConfig(kind="forked", trunk=trunk, understanding=understanding, generation=generation)
    return make_layout(config, num_ranks=sum(dp), global_batch_size=sequences)


def whole_layout(dp: int, *, sequences: dict[Task, int]) -> Layout:
    return make_layout(LayoutConfig(), num_ranks=dp, global_batch_size=sequences)


def y_times(
    trunk: tuple[float, float], *, understanding: float, generation: float, transfer: float = 0.0
) -> StageTimes:
    """The trunk's seconds of a forward and a backward, and each branch's of both, of which a third is the forward."""
    seconds = {}
    for task, both in {U: understanding, G: generation}.items():
        for stage, (forward, backward) in {Stage.TRUNK: trunk, BRANCHES[task]: (both / 3, 2 * both / 3)}.items():
            seconds[stage, task, Pass.FORWARD], seconds[stage, task, Pass.BACKWARD] = forward, backward
    return StageTimes(seconds=seconds, transfer_seconds=transfer)


@st.composite
def y_layouts(draw, most_rounds: int = 4) -> Layout:
    """Draws layouts with a dp of up to 4 in each stage; a task may be missing."""
    dp = draw(st.tuples(*[st.integers(1, 4)] * 3))
    rounds = draw(st.tuples(*[st.integers(0, most_rounds)] * 2).filter(any))
    sequences = {task: n * lcm(dp[0], branch_dp) for task, n, branch_dp in zip(Task, rounds, dp[1:], strict=True)}
    return y_layout(dp, sequences=sequences)


@st.composite
def stage_times(draw) -> StageTimes:
    pairs = [(stage, task) for task in Task for stage in (Stage.COLOCATED, Stage.TRUNK, BRANCHES[task])]
    seconds = {(*pair, direction): draw(st.floats(0.1, 10)) for pair in pairs for direction in Pass}
    return StageTimes(seconds=seconds, transfer_seconds=draw(st.sampled_from([0.0, 0.3, 4.0])))
