"""Lists of actions are complete, legal, free of deadlock, within the limit, and near the optimum."""

from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parallel.schedule.sequence_channels import execute
from tests.parallel.schedule.y_shapes import G, U, stage_times, whole_layout, y_layout, y_layouts, y_times
from ufork.errors import ConfigError
from ufork.parallel.layout import BRANCHES, TASK_OF, Stage
from ufork.parallel.schedule.actions import Action, Pass
from ufork.parallel.schedule.in_flight import enough_in_flight, least_in_flight
from ufork.parallel.schedule.schedule import make_schedule, task_order
from ufork.parallel.schedule.simulation import floor_seconds, most_in_flight, simulate
from ufork.vocabulary import Task

F, B = Pass.FORWARD, Pass.BACKWARD


def least(layout):
    return max(least_in_flight(layout, task) for task in layout.global_batch_size)


def words(actions):
    """Formats actions as "Fu0 Bu0": pass, task, index."""
    return " ".join(f"{a.direction[0].upper()}{a.task[0]}{a.index}" for a in actions)


@given(layout=y_layouts(), times=stage_times(), spare=st.integers(0, 5), trunk_trains=st.booleans())
def test_every_micro_batch_runs_once_each_way_in_every_stage_on_its_path(layout, times, spare, trunk_trains):
    schedule = make_schedule(layout, times, in_flight=least(layout) + spare, trunk_trains=trunk_trains)
    assert schedule.keys() == layout.shapes.keys()
    for stage, actions in schedule.items():
        directions = list(Pass) if stage is not Stage.TRUNK or trunk_trains else [F]
        counts = layout.num_micro_batches(stage)
        expected = [Action(way, task, i) for task, n in counts.items() for i in range(n) for way in directions]
        assert Counter(actions) == Counter(expected)
        order = {action: number for number, action in enumerate(actions)}
        for action in actions:
            if action.direction is B:
                assert order[replace(action, direction=F)] < order[action]


@given(layout=y_layouts(), times=stage_times(), spare=st.integers(0, 5))
def test_a_branch_runs_each_backward_right_after_its_forward(layout, times, spare):
    schedule = make_schedule(layout, times, in_flight=least(layout) + spare)
    for stage in schedule.keys() & TASK_OF.keys():
        assert all(
            action == replace(before, direction=B)
            for before, action in pairwise(schedule[stage])
            if before.direction is F
        )


@given(layout=y_layouts(), times=stage_times(), spare=st.integers(0, 5), seed=st.integers(0, 1 << 16))
def test_lists_run_to_their_end_over_buffers_of_the_limit(layout, times, spare, seed):
    limit = least(layout) + spare
    schedule = make_schedule(layout, times, in_flight=limit)
    execute(schedule, layout, capacity=limit, random=Random(seed), trunk_trains=True)


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (0, 1, 3, 2), (2, 0, 1, 3)], ids=str)
def test_the_channels_detect_a_list_that_deadlocks(order):
    layout = y_layout(sequences={G: 2})
    schedule = make_schedule(layout, y_times((1, 2), understanding=1, generation=3), in_flight=2)
    assert words(schedule[Stage.TRUNK]) == "Fg0 Fg1 Bg0 Bg1"
    reordered = {**schedule, Stage.TRUNK: tuple(schedule[Stage.TRUNK][index] for index in order)}
    with pytest.raises(AssertionError, match="deadlock"):
        execute(reordered, layout, capacity=2, random=Random(0), trunk_trains=True)


@given(layout=y_layouts(), times=stage_times(), limit=st.integers(1, 6), seed=st.integers(0, 1 << 16))
def test_a_frozen_trunk_needs_room_for_one_sequence_between_two_replicas(layout, times, limit, seed):
    schedule = make_schedule(layout, times, in_flight=limit, trunk_trains=False)
    execute(schedule, layout, capacity=1, random=Random(seed), trunk_trains=False)


@given(layout=y_layouts(), times=stage_times(), spare=st.integers(0, 5))
def test_no_more_than_the_limit_is_in_flight(layout, times, spare):
    limit = least(layout) + spare
    flying = 0
    for action in make_schedule(layout, times, in_flight=limit)[Stage.TRUNK]:
        flying += 1 if action.direction is F else -1
        assert 0 <= flying <= limit


@given(layout=y_layouts(), times=stage_times(), spare=st.integers(0, 5), trunk_trains=st.booleans())
def test_every_rank_makes_the_same_lists(layout, times, spare, trunk_trains):
    """The order in which dicts were filled has no effect."""
    turned = replace(layout, global_batch_size=dict(reversed(layout.global_batch_size.items())))
    limit = least(layout) + spare
    schedule = make_schedule(layout, times, in_flight=limit, trunk_trains=trunk_trains)
    again = make_schedule(
        turned,
        replace(times, seconds=dict(reversed(times.seconds.items()))),
        in_flight=limit,
        trunk_trains=trunk_trains,
    )
    assert schedule == again


@given(sequences=st.tuples(*[st.integers(0, 12)] * 2).filter(any), dp=st.integers(1, 4), times=stage_times())
def test_a_colocated_model_alternates_between_tasks(sequences, dp, times):
    layout = whole_layout(dp, sequences={task: dp * number for task, number in zip(Task, sequences, strict=True)})
    actions = make_schedule(layout, times, in_flight=1)[Stage.COLOCATED]
    assert [a.task for a in actions[::2]] == task_order({t: n for t, n in zip(Task, sequences, strict=True) if n})
    assert all(after == replace(before, direction=B) for before, after in zip(actions[::2], actions[1::2], strict=True))


def gets_stuck(layout, task, limit):
    """Whether backward-first with `limit` micro-batches of one task in flight ever has nothing it can run."""
    trunk, branch = layout.shapes[Stage.TRUNK].dp, layout.shapes[BRANCHES[task]].dp
    count, forwards, backwards = layout.num_micro_batches(Stage.TRUNK)[task], 0, 0
    while backwards < count:
        sequences_through_branch = forwards * trunk // branch * branch
        if (backwards + 1) * trunk <= sequences_through_branch:
            backwards += 1
        elif forwards < count and forwards - backwards < limit:
            forwards += 1
        else:
            return True
    return False


@pytest.mark.parametrize("dp", list(product(range(1, 9), range(1, 9))), ids=str)
def test_the_least_in_flight_is_exact(dp):
    trunk, branch = dp
    layout = y_layout((trunk, branch, 1), sequences={U: 2 * trunk * branch})
    assert not gets_stuck(layout, U, least_in_flight(layout, U))
    assert gets_stuck(layout, U, least_in_flight(layout, U) - 1)


@given(layout=y_layouts(), times=stage_times())
def test_a_limit_that_deadlocks_is_refused_and_the_suggested_one_accepted(layout, times):
    with pytest.raises(ConfigError, match=f"deadlocks; use at least {least(layout)}:"):
        make_schedule(layout, times, in_flight=least(layout) - 1)
    make_schedule(layout, times, in_flight=least(layout))


def test_the_refusal_shows_the_arithmetic():
    layout = y_layout((2, 1, 3), sequences={U: 6, G: 6})
    with pytest.raises(ConfigError) as refused:
        make_schedule(layout, y_times((1, 2), understanding=6, generation=6), in_flight=1)
    assert "layout.in_flight=1 deadlocks; use at least 2: the 3 replicas of the generation stage start together" in str(
        refused.value
    )
    assert "(2 + 3 - 1) / 2 = 2 sequences" in str(refused.value)


def test_balanced_branches_are_fed_alternately():
    layout = y_layout(sequences={U: 3, G: 3})
    schedule = make_schedule(layout, y_times((1, 2), understanding=6, generation=6), in_flight=4)
    assert words(schedule[Stage.TRUNK]) == "Fu0 Fg0 Fg1 Fu1 Bu0 Bg0 Fg2 Fu2 Bu1 Bg1 Bu2 Bg2"
    assert words(schedule[Stage.UNDERSTANDING]) == "Fu0 Bu0 Fu1 Bu1 Fu2 Bu2"
    assert words(schedule[Stage.GENERATION]) == "Fg0 Bg0 Fg1 Bg1 Fg2 Bg2"


def test_the_slower_branch_is_fed_first():
    layout = y_layout(sequences={U: 2, G: 2})
    schedule = make_schedule(layout, y_times((1, 2), understanding=6, generation=18), in_flight=4)
    assert words(schedule[Stage.TRUNK]).startswith("Fg0 ")


def test_a_single_task_runs_one_forward_one_backward():
    layout = y_layout(sequences={G: 4})
    schedule = make_schedule(layout, y_times((1, 2), understanding=1, generation=3), in_flight=2)
    assert schedule.keys() == {Stage.TRUNK, Stage.GENERATION}
    assert words(schedule[Stage.TRUNK]) == "Fg0 Fg1 Bg0 Fg2 Bg1 Fg3 Bg2 Bg3"


def test_a_branch_with_more_replicas_waits_for_more_of_the_trunk():
    layout = y_layout((2, 1, 3), sequences={G: 6})
    schedule = make_schedule(layout, y_times((1, 2), understanding=1, generation=3), in_flight=2)
    assert words(schedule[Stage.TRUNK]) == "Fg0 Fg1 Bg0 Fg2 Bg1 Bg2"
    assert words(schedule[Stage.GENERATION]) == "Fg0 Bg0 Fg1 Bg1"


def test_a_frozen_trunk_only_runs_forward():
    layout = y_layout(sequences={U: 2, G: 2})
    schedule = make_schedule(layout, y_times((1, 2), understanding=3, generation=3), in_flight=4, trunk_trains=False)
    assert words(schedule[Stage.TRUNK]) == "Fu0 Fg0 Fg1 Fu1"
    assert words(schedule[Stage.GENERATION]) == "Fg0 Bg0 Fg1 Bg1"


HALF = {U: 16, G: 16}


@pytest.mark.parametrize(
    ("dp", "sequences", "trunk", "branches"),
    [
        ((1, 1, 1), HALF, (1, 1), (4, 4)),
        ((1, 1, 1), HALF, (1, 2), (6, 6)),
        ((1, 1, 1), HALF, (1, 3), (8, 8)),
        ((1, 1, 1), HALF, (1, 2), (3, 9)),
        ((1, 1, 1), HALF, (1, 2), (2, 6)),
        ((1, 1, 1), HALF, (1, 2), (6, 18)),
        ((1, 1, 1), HALF, (1, 2), (1.5, 4.5)),
        ((1, 1, 1), HALF, (1, 2), (4, 4)),
        ((1, 1, 1), HALF, (1, 2), (9, 9)),
        ((1, 1, 1), HALF, (1, 2), (9, 8)),
        ((1, 1, 1), {U: 8, G: 24}, (1, 2), (12, 4)),
        ((1, 1, 1), {U: 24, G: 8}, (1, 2), (4, 12)),
        ((2, 1, 1), {U: 32, G: 32}, (1, 2), (3, 3)),
        ((1, 1, 2), HALF, (1, 2), (6, 12)),
        ((2, 1, 3), {U: 36, G: 36}, (1, 2), (3, 9)),
        ((2, 1, 3), {U: 36, G: 36}, (1, 2), (1, 9)),
        ((3, 2, 4), {U: 48, G: 48}, (1, 2), (4, 8)),
        ((4, 1, 3), {U: 48, G: 48}, (1, 2), (1.5, 4.5)),
        ((1, 1, 1), {G: 32}, (1, 2), (1, 3)),
    ],
)
def test_a_long_step_is_within_three_percent_of_its_floor(dp, sequences, trunk, branches):
    layout = y_layout(dp, sequences=sequences)
    times = y_times(trunk, understanding=branches[0], generation=branches[1])
    schedule = make_schedule(layout, times, in_flight=max(4, enough_in_flight(layout)))
    assert simulate(schedule, layout, times).seconds <= 1.03 * floor_seconds(layout, times)
    frozen = make_schedule(layout, times, in_flight=4, trunk_trains=False)
    assert simulate(frozen, layout, times, buffers=4).seconds <= 1.04 * floor_seconds(layout, times, trunk_trains=False)


@pytest.mark.parametrize("trunk", [(1, 1), (1, 2), (1, 3), (2, 1)], ids=str)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.85])
def test_the_trunk_never_idles_with_enough_in_flight(trunk, share):
    """Branches have work for `share` of the time; the limit follows the rule of docs/schedule.md."""
    layout = y_layout(sequences=HALF)
    through_branch = share * 2 * sum(trunk)
    times = y_times(trunk, understanding=through_branch, generation=through_branch)
    in_flight = 2 + int(through_branch / min(trunk))
    simulation = simulate(make_schedule(layout, times, in_flight=in_flight), layout, times)
    assert simulation.idle_share(Stage.TRUNK) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("branches", "ratio"), [((6, 6), 1.9), ((3, 9), 1.3), ((18, 18), 1.9), ((2, 6), 1.3)], ids=str)
def test_one_task_after_the_other_leaves_a_branch_idle(branches, ratio):
    layout = y_layout(sequences=HALF)
    times = y_times((1, 2), understanding=branches[0], generation=branches[1])
    schedule = make_schedule(layout, times, in_flight=4)
    alone = [make_schedule(y_layout(sequences={task: 16}), times, in_flight=4)[Stage.TRUNK] for task in Task]
    after_each_other = simulate({**schedule, Stage.TRUNK: alone[0] + alone[1]}, layout, times)
    assert after_each_other.seconds > ratio * simulate(schedule, layout, times).seconds


@pytest.mark.parametrize("branches", [(6, 6), (3, 9), (4, 4), (2, 1)], ids=str)
def test_all_forwards_first_keeps_eight_times_as_much_and_is_no_faster(branches):
    layout = y_layout(sequences=HALF)
    times = y_times((1, 2), understanding=branches[0], generation=branches[1])
    schedule = make_schedule(layout, times, in_flight=4)
    order = tuple(sorted(schedule[Stage.TRUNK], key=lambda action: (action.direction is B, action.index, action.task)))
    assert (most_in_flight(order), most_in_flight(schedule[Stage.TRUNK])) == (32, 4)
    forwards_first = simulate({**schedule, Stage.TRUNK: order}, layout, times)
    assert simulate(schedule, layout, times).seconds < 1.02 * forwards_first.seconds


def all_trunk_orders(limit):
    """Yields every order of two micro-batches per task with at most `limit` in flight."""
    alone = ["FFBB", "FBFB"]
    for first, second, positions in product(alone, alone, combinations(range(8), 4)):
        ways = {U: iter(first), G: iter(second)}
        taken: Counter = Counter()
        order = []
        for position in range(8):
            task = U if position in positions else G
            direction = F if next(ways[task]) == "F" else B
            order.append(Action(direction, task, taken[direction, task]))
            taken[direction, task] += 1
        if all(2 * sum(a.direction is F for a in order[:n]) - n <= limit for n in range(9)):
            yield tuple(order)


@settings(max_examples=20)
@given(seconds=st.tuples(*[st.floats(0.1, 10)] * 4), transfer=st.sampled_from([0.0, 0.3, 4.0]), limit=st.integers(1, 4))
def test_a_short_step_is_near_the_best_of_all_orders(seconds, transfer, limit):
    """The trunk takes equally long for both tasks, as it does for sequences of one length."""
    forward, backward, understanding, generation = seconds
    times = y_times((forward, backward), understanding=understanding, generation=generation, transfer=transfer)
    layout = y_layout(sequences={U: 2, G: 2})
    schedule = make_schedule(layout, times, in_flight=limit)
    ours = simulate(schedule, layout, times).seconds
    best = min(simulate({**schedule, Stage.TRUNK: order}, layout, times).seconds for order in all_trunk_orders(limit))
    assert best * (1 - 1e-9) <= ours <= 1.15 * best
