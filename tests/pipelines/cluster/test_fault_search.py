"""The node that cannot exchange data is found among those that can; groups succeed unless it is in them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster.fault_search import FaultSearch


def searched(num_nodes, faulty):
    """Returns the ended search, and its number of rounds."""
    search, rounds = FaultSearch(range(num_nodes)), 0
    while groups := search.next_groups():
        members = [node for group in groups for node in group]
        assert len(members) == len(set(members)) and all(len(group) > 1 for group in groups)
        search.record({group: not set(group) & faulty for group in groups})
        rounds += 1
        assert rounds <= 2 * num_nodes
    return search, rounds


def test_one_round_is_enough_when_all_exchange_data():
    search, rounds = searched(64, set())
    assert (rounds, search.all_together, search.faulty) == (1, True, set())


@pytest.mark.parametrize("num_nodes", [3, 4, 5, 16, 64])
def test_one_faulty_node_is_found_wherever_it_is(num_nodes):
    for faulty in range(num_nodes):
        search, rounds = searched(num_nodes, {faulty})
        assert search.faulty == {faulty} and not search.unknown and not search.all_together
        assert rounds <= math.ceil(math.log2(num_nodes)) + 2


@given(st.integers(2, 12), st.sets(st.integers(0, 11)))
def test_exactly_the_faulty_nodes_are_found_if_two_are_fit(num_nodes, chosen):
    faulty = {node for node in chosen if node < num_nodes}
    search, _ = searched(num_nodes, faulty)
    if num_nodes - len(faulty) >= 2:
        assert search.faulty == faulty and search.fit == set(range(num_nodes)) - faulty
    else:
        assert not search.faulty and not search.fit  # nobody can tell which of them it is


def test_groups_that_only_fail_together_leave_nobody_at_fault():
    search = FaultSearch(range(4))
    while groups := search.next_groups():
        search.record({group: len(group) < 4 for group in groups})
    assert (search.fit, search.faulty, search.all_together) == ({0, 1, 2, 3}, set(), False)
