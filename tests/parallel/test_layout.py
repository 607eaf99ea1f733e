"""Layouts: coordinates of ranks, sequences of replicas, and refusals; arithmetic only."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ufork.errors import ConfigError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import BRANCHES, Stage, make_layout, num_ranks_of
from ufork.vocabulary import Task

SEQUENCES = {Task.UNDERSTANDING: 12, Task.GENERATION: 12}


def forked(trunk=(1, 1), understanding=(1, 1), generation=(1, 1), **changes) -> LayoutConfig:
    shapes = dict(trunk=trunk, understanding=understanding, generation=generation)
    return LayoutConfig(
        kind="forked", **{name: StageShape(tp=tp, dp=dp) for name, (tp, dp) in shapes.items()}, **changes
    )


shapes = st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 4))


@given(shapes, shapes, shapes, st.sampled_from(["stages", "replicas"]))
def test_every_coordinate_belongs_to_exactly_one_rank(trunk, understanding, generation, placement):
    config = forked(trunk, understanding, generation, placement=placement)
    layout = make_layout(config, num_ranks=num_ranks_of(config), global_batch_size=SEQUENCES)
    assert len(set(layout.coordinates)) == len(layout.coordinates) == num_ranks_of(config)
    for stage, shape in layout.shapes.items():
        ranks = layout.ranks_of(stage)
        assert len(ranks) == shape.size
        for dp_rank in range(shape.dp):
            for tp_rank in range(shape.tp):
                coordinate = layout.coordinates[layout.rank_at(stage, dp_rank=dp_rank, tp_rank=tp_rank)]
                assert (coordinate.stage, coordinate.dp_rank, coordinate.tp_rank) == (stage, dp_rank, tp_rank)


@given(shapes, shapes, shapes, st.sampled_from(["stages", "replicas"]))
def test_ranks_that_share_a_replica_are_neighbours(trunk, understanding, generation, placement):
    config = forked(trunk, understanding, generation, placement=placement)
    layout = make_layout(config, num_ranks=num_ranks_of(config), global_batch_size=SEQUENCES)
    for stage, shape in layout.shapes.items():
        for dp_rank in range(shape.dp):
            ranks = [layout.rank_at(stage, dp_rank=dp_rank, tp_rank=tp_rank) for tp_rank in range(shape.tp)]
            assert ranks == list(range(ranks[0], ranks[0] + shape.tp))


def test_placement_puts_a_stage_or_a_replica_on_neighbouring_ranks():
    pairs = dict(trunk=(1, 2), understanding=(1, 2), generation=(1, 2))
    by_stage = make_layout(forked(**pairs), num_ranks=6, global_batch_size=SEQUENCES)
    assert [by_stage.ranks_of(stage) for stage in by_stage.shapes] == [(0, 1), (2, 3), (4, 5)]
    by_replica = make_layout(forked(**pairs, placement="replicas"), num_ranks=6, global_batch_size=SEQUENCES)
    assert [by_replica.ranks_of(stage) for stage in by_replica.shapes] == [(0, 3), (1, 4), (2, 5)]


@given(st.integers(1, 4), st.integers(1, 4))
def test_every_sequence_runs_on_one_replica_of_each_stage_of_its_path(trunk_dp, branch_dp):
    sequences = math.lcm(trunk_dp, branch_dp) * 2
    assume(sequences)
    config = forked(trunk=(1, trunk_dp), generation=(1, branch_dp))
    layout = make_layout(
        config, num_ranks=num_ranks_of(config), global_batch_size={Task.UNDERSTANDING: 0, Task.GENERATION: sequences}
    )
    assert Stage.UNDERSTANDING not in layout.shapes
    for stage in (Stage.TRUNK, BRANCHES[Task.GENERATION]):
        assert layout.num_micro_batches(stage)[Task.GENERATION] * layout.shapes[stage].dp == sequences


def test_ranks_of_an_absent_stage_idle():
    layout = make_layout(forked(), num_ranks=3, global_batch_size={Task.UNDERSTANDING: 0, Task.GENERATION: 2})
    assert layout.present_ranks == (0, 2)
    assert make_layout(forked(), num_ranks=3, global_batch_size=SEQUENCES).present_ranks == (0, 1, 2)


@pytest.mark.parametrize(
    ("config", "num_ranks", "said"),
    [
        (forked(trunk=(2, 1)), 3, r"trunk 2x1 \+ understanding 1x1 \+ generation 1x1 = 4 ranks, the job has 3"),
        (forked(trunk=(2, 1), generation=(3, 1)), 6, r"trunk\.tp=2 and generation\.tp=3: one must be a multiple"),
        (forked(generation=(1, 5)), 7, r"train\.global_batch_size\.generation=12 is not a multiple of the 5"),
        (
            forked(trunk=(1, 5)),
            7,
            r"train\.global_batch_size\.understanding=12 is not a multiple of the 5 .* trunk stage",
        ),
        (LayoutConfig(colocated_tp=2), 3, r"layout\.colocated_tp=2 does not divide the 3 ranks"),
    ],
)
def test_impossible_layouts_are_refused_with_the_arithmetic(config, num_ranks, said):
    with pytest.raises(ConfigError, match=said):
        make_layout(config, num_ranks=num_ranks, global_batch_size=SEQUENCES)


def test_a_layout_given_as_a_word_is_the_kind():
    assert LayoutConfig.model_validate("forked").kind == "forked"


def test_a_coordinate_names_its_rank_in_messages():
    config = forked(trunk=(2, 2))
    layout = make_layout(config, num_ranks=6, global_batch_size=SEQUENCES)
    assert str(layout.coordinates[3]) == "rank 3 (trunk, replica 1 of 2, tp rank 1 of 2)"
