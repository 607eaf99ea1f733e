"""Finds which nodes cannot exchange data with the others, by trying smaller and smaller groups of them.

all nodes -> failed: both halves -> ... -> pairs -> each suspect with a node that has succeeded in another group

When all exchange data, one round is enough. With one faulty node of N it takes about log2(N) + 2 rounds, each with
disjoint groups that try at the same time.
"""

from collections.abc import Mapping, Sequence

Group = tuple[int, ...]
"""Numbers of nodes."""


class FaultSearch:
    """Which groups to try next, and what the earlier ones have shown."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self.nodes = tuple(nodes)
        self.fit: set[int] = set()
        """Nodes that have exchanged data in some group."""
        self.faulty: set[int] = set()
        """Nodes that could not exchange data with a fit node."""
        self.all_together = False
        """Whether all nodes have exchanged data in one group."""
        self._waiting: list[Group] = [self.nodes] if len(nodes) > 1 else []
        self._failed_pairs: set[frozenset[int]] = set()

    @property
    def unknown(self) -> set[int]:
        """Nodes of which nothing is known: none that is fit has tried with them."""
        return set(self.nodes) - self.fit - self.faulty

    def next_groups(self) -> list[Group]:
        """Returns disjoint groups to try at the same time; none when the search has ended."""
        return self._waiting or self._pairs()

    def record(self, succeeded: Mapping[Group, bool]) -> None:
        """Takes in the outcome of each of `next_groups`."""
        self._waiting = []
        for group, success in succeeded.items():
            if success:
                self.fit |= set(group)
                self.all_together = self.all_together or group == self.nodes
            elif len(group) == 2:
                self._failed_pairs.add(frozenset(group))
            else:
                middle = len(group) // 2
                self._waiting += [half for half in (group[:middle], group[middle:]) if len(half) > 1]
        for pair in self._failed_pairs:
            if len(pair & self.fit) == 1:
                self.faulty |= pair - self.fit

    def _pairs(self) -> list[Group]:
        """Pairs each unknown node with a fit one, or with another unknown one as long as none is fit."""
        pairs: list[Group] = []
        taken: set[int] = set()
        for node in sorted(self.unknown):
            partners = self.fit or self.unknown - {node}
            free = (each for each in sorted(partners - taken) if frozenset((node, each)) not in self._failed_pairs)
            if node not in taken and (partner := next(free, None)) is not None:
                pairs.append((min(node, partner), max(node, partner)))
                taken |= {node, partner}
        return pairs
