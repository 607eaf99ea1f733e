"""Rendezvous of one process per node: which nodes do not answer, and which cannot exchange data with the others.

rank environment -> store on the first node: each process reports that it is here, and whether its own checks passed
                 -> rank 0 publishes groups of fit nodes, round after round (`FaultSearch`); each group exchanges data
                 -> Rendezvous

The store is reached over TCP, so that nodes whose NCCL fails can still report it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pipelines.cluster.exchange import START_SECONDS, ExchangeGroup, Measurements
from pipelines.cluster.fault_search import FaultSearch, Group
from ufork.errors import PeerError, first_line
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.job_store import open_store, signed, verified

ARRIVAL_SECONDS = 300.0
"""Time in which nodes must arrive: one whose driver hangs, or that imports torch from a slow disk, comes late."""
POLL_SECONDS = 0.2

Exchange = Callable[[ExchangeGroup], Measurements]


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """What a node and the others have found out about it."""

    measured: Measurements | None = None
    """Of the largest group in which this node has exchanged data."""
    fault: str = ""
    """Why this node is at fault: other nodes exchange data, but not with this one."""
    missed: str = ""
    """Why it did not exchange data with all others, where nothing shows that this node is at fault."""
    unreached: tuple[str, ...] = ()
    """Nodes that did not arrive or are at fault, which they may be unable to report."""


def rendezvous(
    rank_env: RankEnvironment,
    nodes: Sequence[str],
    exchange: Exchange,
    *,
    fit: bool,
    on_gpu: bool,
    timeout_seconds: float,
    arrival_seconds: float = ARRIVAL_SECONDS,
) -> Rendezvous:
    """Waits for the processes of the other nodes, and exchanges data with those that are fit.

    Args:
        rank_env: of this process; the job has one rank per node.
        nodes: names of all nodes, by rank.
        exchange: exchanges data in a group; raises PeerError if it cannot.
        fit: whether this node has passed its own checks. Others do not exchange data; they stay until the end.
        on_gpu: whether to use NCCL on the first GPU, rather than gloo.
        timeout_seconds: how long one exchange may take.
        arrival_seconds: how long to wait for the other nodes.
    """
    try:
        store = open_store(rank_env, timedelta(seconds=arrival_seconds), wait_for_ranks=False)
    except (RuntimeError, dist.DistError) as error:
        reason = first_line(error)
        return Rendezvous(missed=f"did not reach {nodes[0]} ({reason})", unreached=(nodes[0],))
    store.set(f"here/{rank_env.rank}", "fit" if fit else "unfit")
    node = _Node(rank_env, nodes, store, exchange, on_gpu, timeout_seconds)
    if rank_env.rank != 0:
        return node.follow(arrival_seconds)
    arrived = node.wait_for_all(arrival_seconds)
    found = node.lead(arrived)
    node.wait_until_read(arrived)
    return found


@dataclass
class _Node:
    """One process of the rendezvous."""

    rank_env: RankEnvironment
    nodes: Sequence[str]
    store: dist.TCPStore
    exchange: Exchange
    on_gpu: bool
    timeout_seconds: float
    measured: Measurements | None = None
    failure: str = ""
    """Of the last exchange that failed."""

    @property
    def rank(self) -> int:
        return self.rank_env.rank

    def wait_for_all(self, seconds: float) -> list[int]:
        """Returns the ranks that have arrived, all of them or those in time."""
        ranks = {f"here/{rank}": rank for rank in range(len(self.nodes))}
        return [ranks[key] for key in self._set_within(seconds, list(ranks))]

    def lead(self, arrived: Sequence[int]) -> Rendezvous:
        """Publishes groups until the search ends, and then what was found; returns that for this node."""
        search = FaultSearch([rank for rank in arrived if self.store.get(f"here/{rank}") == b"fit"])
        number = 0
        while groups := search.next_groups():
            self._publish(f"round/{number}", groups)
            self._take_part(number, groups)
            search.record({group: self._has_succeeded(number, group) for group in groups})
            number += 1
        found = {
            "arrived": list(arrived),
            "fit": sorted(search.fit),
            "faulty": sorted(search.faulty),
            "taking_part": search.nodes,
            "all_together": search.all_together or len(search.nodes) < 2,
        }
        self._publish("found", found)
        self._publish(f"round/{number}", [])
        return self._read_found()

    def follow(self, arrival_seconds: float) -> Rendezvous:
        """Takes part in the rounds that rank 0 publishes."""
        seconds, number = 2 * arrival_seconds, 0
        while True:
            try:
                self.store.wait([f"round/{number}"], timedelta(seconds=seconds))
                groups = [tuple(group) for group in self._published(f"round/{number}")]
                if not groups:
                    found = self._read_found()
                    self.store.set(f"read/{self.rank}", "")
                    return found
                self._take_part(number, groups)
            except (RuntimeError, dist.DistError, PeerError) as error:
                first, reason = self.nodes[0], first_line(error)
                return Rendezvous(measured=self.measured, missed=f"lost {first} ({reason})", unreached=(first,))
            # Rank 0 waits for its own exchange, and then for others; if it is gone, the wait ends at once.
            seconds, number = 10 + 3 * self._exchange_seconds, number + 1

    def _publish(self, key: str, value: Any) -> None:
        self.store.set(key, signed(value, key, self.rank_env.secret))

    def _published(self, key: str) -> Any:
        return verified(self.store.get(key), key, self.rank_env.secret)

    def wait_until_read(self, arrived: Sequence[int]) -> None:
        """Serves the store until the others have read what was found."""
        self._set_within(self.timeout_seconds, [f"read/{rank}" for rank in arrived if rank])

    def _take_part(self, number: int, groups: Sequence[Group]) -> None:
        group = next((group for group in groups if self.rank in group), None)
        if group is None:
            return
        of_group = ExchangeGroup(
            host=self.rank_env.master_address,
            port=self.rank_env.master_port,
            prefix=f"exchange/{number}/{group[0]}",
            rank=group.index(self.rank),
            size=len(group),
            on_gpu=self.on_gpu,
            timeout_seconds=self.timeout_seconds,
        )
        try:
            measured = self.exchange(of_group)
        except PeerError as error:
            others = ", ".join(self.nodes[rank] for rank in group if rank != self.rank)
            self.failure = f"with {others}: {error}"
        else:
            self.measured = self.measured or measured  # groups become smaller
            self.store.set(f"succeeded/{number}/{self.rank}", "")
        self.store.set(f"done/{number}/{self.rank}", "")

    def _has_succeeded(self, number: int, group: Group) -> bool:
        """Whether all nodes of the group say so, after the time that they may take."""
        self._set_within(1.5 * self._exchange_seconds, [f"done/{number}/{rank}" for rank in group])
        return all(self.store.check([f"succeeded/{number}/{rank}"]) for rank in group)

    def _set_within(self, seconds: float, keys: Sequence[str]) -> list[str]:
        """Returns those of `keys` that are set in the store, as soon as all are, at the latest after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            present = [key for key in keys if self.store.check([key])]
            if len(present) == len(keys) or time.monotonic() > deadline:
                return present
            time.sleep(POLL_SECONDS)

    @property
    def _exchange_seconds(self) -> float:
        """The longest time that an exchange may take, with its process's start."""
        return START_SECONDS + self.timeout_seconds

    def _read_found(self) -> Rendezvous:
        found = self._published("found")
        absent = [name for rank, name in enumerate(self.nodes) if rank not in found["arrived"]]
        faulty = [self.nodes[rank] for rank in found["faulty"] if rank != self.rank]
        fault = missed = ""
        if self.rank in found["faulty"]:
            fit = ", ".join(self.nodes[rank] for rank in found["fit"][:3])
            fault = f"cannot exchange data {self.failure}; others can, among them {fit}"
        elif absent:
            missed = f"did not reach {', '.join(absent)}"
        elif self.rank in found["taking_part"] and not (found["all_together"] or found["faulty"]):
            missed = f"cannot exchange data {self.failure or 'with all nodes together'}"
        return Rendezvous(measured=self.measured, fault=fault, missed=missed, unreached=(*absent, *faulty))
