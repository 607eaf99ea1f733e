"""A step in simulated time: examples computed by hand, and invariants."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parallel.schedule.y_shapes import G, U, stage_times, whole_layout, y_layout, y_layouts, y_times
from ufork.parallel.layout import Stage
from ufork.parallel.schedule.actions import Action, Pass, inputs_of
from ufork.parallel.schedule.in_flight import enough_in_flight
from ufork.parallel.schedule.schedule import make_schedule
from ufork.parallel.schedule.simulation import floor_seconds, most_in_flight, simulate

F, B = Pass.FORWARD, Pass.BACKWARD
PAGE = Path(__file__).parents[3] / "docs" / "schedule.md"


def begins(simulation, stage):
    return [round(span.begin, 6) for span in simulation.spans[stage]]


def timeline(simulation):
    """A line per stage, three characters a second: `u0` a forward, `U0` a backward, `-` its continuation."""
    lines = []
    for stage, spans in simulation.spans.items():
        cells = ["  ."] * round(simulation.seconds)
        for span in spans:
            name = f"{span.action.task[0]}{span.action.index}"
            cells[round(span.begin) : round(span.end)] = ["  -"] * round(span.seconds)
            cells[round(span.begin)] = f" {name.upper() if span.action.direction is B else name}"
        lines.append(f"{stage:13}" + "".join(cells))
    return "\n".join(lines)


def test_actions_begin_when_their_inputs_have_arrived():
    layout = y_layout(sequences={G: 2})
    times = y_times((1, 2), understanding=3, generation=3, transfer=0.5)
    simulation = simulate(make_schedule(layout, times, in_flight=2), layout, times)
    assert begins(simulation, Stage.TRUNK) == [0, 1, 5, 8]
    assert begins(simulation, Stage.GENERATION) == [1.5, 2.5, 4.5, 5.5]
    assert simulation.seconds == 10
    assert simulation.idle_share(Stage.TRUNK) == pytest.approx(0.4)


def test_stages_of_unequal_dp_wait_for_all_sequences():
    layout = y_layout((2, 1, 3), sequences={G: 6})
    assert inputs_of(layout, Stage.GENERATION, Action(F, G, 1)) == tuple((Stage.TRUNK, Action(F, G, i)) for i in (1, 2))
    assert inputs_of(layout, Stage.TRUNK, Action(B, G, 1)) == tuple((Stage.GENERATION, Action(B, G, i)) for i in (0, 1))
    assert inputs_of(layout, Stage.TRUNK, Action(B, G, 0)) == ((Stage.GENERATION, Action(B, G, 0)),)
    assert inputs_of(layout, Stage.TRUNK, Action(F, G, 0)) == inputs_of(layout, Stage.GENERATION, Action(B, G, 0)) == ()


def test_a_stage_waits_for_room():
    layout = y_layout(sequences={G: 3})
    times = y_times((1, 2), understanding=3, generation=6)
    schedule = make_schedule(layout, times, in_flight=3, trunk_trains=False)
    assert begins(simulate(schedule, layout, times), Stage.TRUNK) == [0, 1, 2]
    assert begins(simulate(schedule, layout, times, buffers=1), Stage.TRUNK) == [0, 1, 7]


def test_a_deadlock_names_each_stage_and_the_action_it_waits_for():
    layout = y_layout(sequences={G: 2})
    schedule = make_schedule(layout, y_times((1, 2), understanding=3, generation=6), in_flight=2)
    turned = {**schedule, Stage.TRUNK: schedule[Stage.TRUNK][::-1]}
    with pytest.raises(
        AssertionError, match="trunk for backward of generation 1, generation for forward of generation 0"
    ):
        simulate(turned, layout, y_times((1, 2), understanding=3, generation=6))


def test_the_floor_equals_the_one_computed_by_hand():
    sequences = {U: 12, G: 12}
    trunk_bound = y_times((1, 2), understanding=1, generation=1)
    assert floor_seconds(y_layout(sequences=sequences), trunk_bound) == 24 * 3
    assert floor_seconds(y_layout(sequences=sequences), trunk_bound, trunk_trains=False) == 24
    branch_bound = y_times((1, 2), understanding=6, generation=18)
    assert floor_seconds(y_layout(sequences=sequences), branch_bound) == 1 + 12 * 18 + 2


def test_the_floor_of_unequal_dp_counts_the_trunk_at_both_ends():
    """The 3 replicas of generation need 2 micro-batches of the 2 of the trunk to begin, and leave 2 backwards."""
    layout = y_layout((2, 1, 3), sequences={U: 12, G: 12})
    times = y_times((1, 2), understanding=6, generation=18)
    assert floor_seconds(layout, times) == max(2 * (1 + 2) + 4 * 18, (1 + 2) + 12 * 6)
    assert floor_seconds(layout, times, trunk_trains=False) == max(2 + 4 * 18, 1 + 12 * 6)


@given(sequences=st.tuples(st.integers(0, 9), st.integers(1, 9)), dp=st.integers(1, 3), times=stage_times())
def test_a_colocated_step_is_its_floor(sequences, dp, times):
    layout = whole_layout(dp, sequences={U: sequences[0] * dp, G: sequences[1] * dp})
    simulation = simulate(make_schedule(layout, times, in_flight=1), layout, times)
    assert simulation.seconds == pytest.approx(floor_seconds(layout, times))
    assert simulation.idle_share(Stage.COLOCATED) == pytest.approx(0)
    assert most_in_flight(make_schedule(layout, times, in_flight=1)[Stage.COLOCATED]) == 1


@given(layout=y_layouts(), times=stage_times(), trunk_trains=st.booleans(), spare=st.integers(0, 3))
def test_no_step_is_shorter_than_its_floor(layout, times, trunk_trains, spare):
    limit = enough_in_flight(layout) + spare
    schedule = make_schedule(layout, times, in_flight=limit, trunk_trains=trunk_trains)
    simulation = simulate(schedule, layout, times, buffers=limit)
    assert simulation.seconds >= floor_seconds(layout, times, trunk_trains=trunk_trains) * (1 - 1e-9)
    assert most_in_flight(schedule[Stage.TRUNK]) <= (limit if trunk_trains else 0)
    for stage, spans in simulation.spans.items():
        assert 0 <= simulation.idle_share(stage) < 1
        assert [span.action for span in spans] == list(schedule[stage])


@given(layout=y_layouts(), times=stage_times(), spare=st.integers(0, 3))
def test_the_limit_in_flight_bounds_the_buffers(layout, times, spare):
    """A trunk that trains thus never waits for room, and its sends need no other limit."""
    limit = enough_in_flight(layout) // 2 + spare
    schedule = make_schedule(layout, times, in_flight=limit)
    assert simulate(schedule, layout, times, buffers=limit) == simulate(schedule, layout, times)


def test_the_page_shows_the_step_that_the_code_makes():
    layout = y_layout(sequences={U: 3, G: 3})
    times = y_times((1, 2), understanding=6, generation=6)
    simulation = simulate(make_schedule(layout, times, in_flight=4), layout, times)
    assert timeline(simulation) in PAGE.read_text(encoding="utf-8"), f"\n{timeline(simulation)}"
