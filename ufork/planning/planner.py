"""Which layout for so many devices: every sensible one is estimated, and one is recommended with its reason.

workload, machine, number of devices -> candidate layouts -> those that fit -> Plan, the fastest first
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import gcd

from ufork.errors import ConfigError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import Layout, Stage, make_layout, num_ranks_of
from ufork.parallel.schedule.in_flight import sequences_in_flight
from ufork.planning.machine import MachineProfile
from ufork.planning.memory import RankMemory, rank_memory
from ufork.planning.step_time import StepEstimate, estimate_step
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

TENSOR_SIZES = (1, 2, 4, 8)
LEAST_USED_SHARE = 0.75
"""Of the devices; layouts that leave more of them idle are not looked at."""
SIMPLER_BY = 0.03
"""A colocated layout is recommended unless a forked one is faster by more than this share."""
USABLE_SHARE = 0.9
"""Of a device's memory; the rest is the allocator's and the libraries'."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One layout with what it costs."""

    config: LayoutConfig
    layout: Layout
    step: StepEstimate
    memory: dict[Stage, RankMemory]

    @property
    def num_ranks(self) -> int:
        """Devices it uses."""
        return len(self.layout.coordinates)

    @property
    def fullest(self) -> int:
        """Bytes of the fullest rank."""
        return max(memory.total for memory in self.memory.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Layouts that fit, the fastest first, and the one to take."""

    candidates: list[Candidate]
    recommended: Candidate
    reason: str


def make_plan(workload: Workload, machine: MachineProfile, *, num_devices: int) -> Plan:
    """Looks at the layouts of up to `num_devices` ranks.

    Raises:
        ConfigError: no layout fits the rows of a step, or none the memory.
    """
    estimated = [_estimate(workload, machine, config, ranks) for config, ranks in _layouts(workload, num_devices)]
    if not estimated:
        raise ConfigError(
            f"{num_devices} devices: no layout gives every replica rows of a step ({_sequences(workload)}); raise"
            " train.global_batch_size, or use fewer devices"
        )
    room = USABLE_SHARE * machine.memory_gb * 1e9
    fitting = sorted((c for c in estimated if c.fullest <= room), key=lambda c: c.step.seconds)
    if not fitting:
        least = min(estimated, key=lambda c: c.fullest)
        raise ConfigError(
            f"{num_devices} devices of {machine.memory_gb:g} GB: the leanest layout ({least.config.describe()}) needs"
            f" {least.fullest / 1e9:.0f} GB a rank; use more devices, train.activation_checkpointing=true, a shorter"
            " data.seq_len or a lower layout.in_flight"
        )
    recommended, reason = _recommend(fitting)
    return Plan(candidates=fitting, recommended=recommended, reason=reason)


def _recommend(fitting: list[Candidate]) -> tuple[Candidate, str]:
    fastest = fitting[0]
    colocated = next((c for c in fitting if c.config.kind == "colocated"), None)
    if colocated is None:
        return fastest, "no colocated layout fits a device's memory; this forked one is the fastest of those that do"
    forked = next((c for c in fitting if c.config.kind == "forked"), None)
    if forked is None:
        return colocated, "no forked layout fits, and this colocated one is the fastest"
    gain = colocated.step.seconds / forked.step.seconds - 1
    if gain > SIMPLER_BY:
        return (
            forked,
            f"{gain:.0%} faster than the best colocated layout, which gathers trunk and branches on every rank",
        )
    if gain > 0:
        return (
            colocated,
            f"a forked layout would gain {gain:.1%}, too little to be worth its stages: plain ZeRO-3 is simpler",
        )
    return (
        colocated,
        f"plain ZeRO-3 wins: the best forked layout takes {-gain / (1 + gain):.0%} longer, as its stages idle",
    )


def _estimate(workload: Workload, machine: MachineProfile, config: LayoutConfig, num_ranks: int) -> Candidate:
    layout = make_layout(config, num_ranks=num_ranks, global_batch_size=workload.global_batch_size)
    return Candidate(
        config=config,
        layout=layout,
        step=estimate_step(workload, machine, config, layout),
        memory={
            stage: rank_memory(
                workload,
                stage,
                shape,
                in_flight=sequences_in_flight(config, layout),
                reduce_each_backward=config.reduce_each_backward,
            )
            for stage, shape in layout.shapes.items()
        },
    )


def _layouts(workload: Workload, num_devices: int) -> Iterator[tuple[LayoutConfig, int]]:
    """Those whose rows come out even, with their number of ranks."""
    sequences = {task: number for task, number in workload.global_batch_size.items() if number}
    for tp in _tensor_sizes(workload):
        if num_devices % tp == 0 and all(number % (num_devices // tp) == 0 for number in sequences.values()):
            yield LayoutConfig(colocated_tp=tp), num_devices
    if len(sequences) == len(Task) == len(workload.model.tasks):
        yield from ((config, num_ranks_of(config) or 0) for config in _forked(workload, sequences, num_devices))


def _forked(workload: Workload, sequences: dict[Task, int], num_devices: int) -> Iterator[LayoutConfig]:
    sizes = _tensor_sizes(workload)
    trunk_dps = _divisors(gcd(*sequences.values()))
    for trunk_tp, branch_tp in product(sizes, sizes):
        branch_dps = (_divisors(sequences[Task.UNDERSTANDING]), _divisors(sequences[Task.GENERATION]))
        for trunk_dp, u_dp, g_dp in product(trunk_dps, *branch_dps):
            used = trunk_tp * trunk_dp + u_dp + branch_tp * g_dp
            if LEAST_USED_SHARE * num_devices <= used <= num_devices and max(u_dp, g_dp) <= 4 * trunk_dp:
                yield LayoutConfig(
                    kind="forked",
                    trunk=StageShape(tp=trunk_tp, dp=trunk_dp),
                    understanding=StageShape(dp=u_dp),
                    generation=StageShape(tp=branch_tp, dp=g_dp),
                )


def _tensor_sizes(workload: Workload) -> list[int]:
    config, head = workload.model, workload.model.rq_head
    divided = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
        head.num_attention_heads,
        head.hidden_size,
    )
    sizes = (*divided, workload.dimensions.vocab_size, workload.dimensions.codebook_size)
    return [tp for tp in TENSOR_SIZES if all(size % tp == 0 for size in sizes)]


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _sequences(workload: Workload) -> str:
    return ", ".join(f"{task} {number}" for task, number in workload.global_batch_size.items())
