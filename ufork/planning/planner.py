"""Recommends a layout for a number of devices: estimates every sensible one, and gives the reason.

workload, machine, number of devices -> layouts that the recipe's checks allow -> step time and memory of each
-> those that fit a device's memory -> Plan, the fastest first
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, gcd

from ufork.errors import ConfigError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import Layout, Stage, num_ranks_of
from ufork.parallel.layout_checks import checked_layout, require_divisible_lanes
from ufork.parallel.schedule.in_flight import sequences_in_flight
from ufork.planning.machine import MachineProfile
from ufork.planning.memory import RankMemory, rank_memory
from ufork.planning.step_time import StepEstimate, estimate_step
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

TENSOR_SIZES = (1, 2, 4, 8)
"""Values of tp that are considered."""
MIN_USED_SHARE = 0.75
"""Least share of the devices that a layout uses to be considered."""
SIMPLER_BY = 0.03
"""A colocated layout is recommended unless a forked one is faster by more than this share."""
USABLE_SHARE = 0.9
"""Share of a device's memory that a rank may take; the rest is the allocator's and the libraries'."""

Check = Callable[[LayoutConfig, int], None]
"""Raises ConfigError for a layout and number of ranks that may not be recommended."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One layout with its costs."""

    config: LayoutConfig
    layout: Layout
    step: StepEstimate
    memory: dict[Stage, RankMemory]

    @property
    def num_ranks(self) -> int:
        """Number of devices it uses."""
        return len(self.layout.coordinates)

    @property
    def fullest(self) -> int:
        """Bytes of tensors on the rank that has the most."""
        return max(memory.total for memory in self.memory.values())

    def fits(self, machine: MachineProfile) -> bool:
        """Whether every rank fits its device, with what CUDA and NCCL take beside the tensors."""
        room = USABLE_SHARE * machine.memory_gb * 1e9
        return all(memory.total + (memory.outside if machine.kernels else 0) <= room for memory in self.memory.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Layouts that fit, the fastest first, and the recommended one."""

    candidates: list[Candidate]
    recommended: Candidate
    reason: str


def make_plan(
    workload: Workload, machine: MachineProfile, *, num_devices: int, check: Check = lambda config, num_ranks: None
) -> Plan:
    """Estimates the layouts of up to `num_devices` ranks and recommends one.

    Args:
        workload: what one phase computes.
        machine: rates and memory of the devices.
        num_devices: devices of the job.
        check: raises ConfigError if something else than the phase, such as another phase, cannot train on a layout.

    Raises:
        ConfigError: no layout passes the recipe's checks, or none fits the memory.
    """
    estimated = [_estimate(workload, machine, *option) for option in _layouts(workload, num_devices)]
    if not estimated:
        raise ConfigError(
            f"{num_devices} devices: no layout gives every replica equally many packed sequences of a step"
            f" ({_sequences(workload)}); raise train.global_batch_size, or use fewer devices"
        )
    fitting = sorted((c for c in estimated if c.fits(machine)), key=lambda c: c.step.seconds)
    if not fitting:
        least = min(estimated, key=lambda c: c.fullest)
        raise ConfigError(
            f"{num_devices} devices of {machine.memory_gb:g} GB: the leanest layout ({least.config.describe()}) needs"
            f" {least.fullest / 1e9:.0f} GB a rank; use more devices, train.activation_checkpointing=true, a shorter"
            " data.seq_len or a lower layout.in_flight"
        )
    refusals = [_refusal(candidate, workload, check) for candidate in fitting]
    allowed = [candidate for candidate, refusal in zip(fitting, refusals, strict=True) if not refusal]
    if not allowed:
        raise ConfigError(f"{num_devices} devices, {fitting[0].config.describe()}: {refusals[0]}")
    recommended, reason = _recommend(allowed)
    if refusals[0] and recommended.step.seconds > (1 + SIMPLER_BY) * fitting[0].step.seconds:
        gain = recommended.step.seconds / fitting[0].step.seconds - 1
        reason += f". {fitting[0].config.describe()} would be {gain:.0%} faster, but {refusals[0]}"
    return Plan(candidates=allowed, recommended=recommended, reason=reason)


def without_recompute(chosen: Candidate, workload: Workload, machine: MachineProfile) -> Candidate | None:
    """Returns `chosen` without activation checkpointing, if `workload` has it and the devices can do without."""
    if not workload.recompute:
        return None
    keeping = _estimate(replace(workload, recompute=False), machine, chosen.config, chosen.layout)
    return keeping if keeping.fits(machine) else None


def _recommend(fitting: list[Candidate]) -> tuple[Candidate, str]:
    fastest = fitting[0]
    colocated = next((c for c in fitting if c.config.kind == "colocated"), None)
    if colocated is None:
        return fastest, "the fastest of the forked layouts that fit; no colocated layout does"
    forked = next((c for c in fitting if c.config.kind == "forked"), None)
    if forked is None:
        return colocated, "the fastest of the colocated layouts that fit; no forked layout does"
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
        f"plain ZeRO-3 is the fastest: the best forked layout takes {-gain / (1 + gain):.0%} longer, as stages idle",
    )


def _estimate(workload: Workload, machine: MachineProfile, config: LayoutConfig, layout: Layout) -> Candidate:
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


def _refusal(candidate: Candidate, workload: Workload, check: Check) -> str:
    """The message if `data.num_lanes`, which costs nothing to change, or `check` rules a layout out; else empty."""
    try:
        require_divisible_lanes(candidate.layout, workload.num_lanes)
        check(candidate.config, candidate.num_ranks)
    except ConfigError as error:
        return str(error)
    return ""


def _layouts(workload: Workload, num_devices: int) -> Iterator[tuple[LayoutConfig, Layout]]:
    """Layouts that pass all checks of the recipe but that of the lanes."""
    for config, num_ranks in _options(workload, num_devices):
        with suppress(ConfigError):
            layout = checked_layout(
                config,
                num_ranks=num_ranks,
                global_batch_size=workload.global_batch_size,
                model=workload.model,
                dimensions=workload.dimensions,
                seq_len=workload.seq_len,
                num_lanes=0,
            )
            yield config, layout


def _options(workload: Workload, num_devices: int) -> Iterator[tuple[LayoutConfig, int]]:
    """Layouts worth checking, with their number of ranks."""
    for num_ranks in range(ceil(MIN_USED_SHARE * num_devices), num_devices + 1):
        yield from ((LayoutConfig(colocated_tp=tp), num_ranks) for tp in TENSOR_SIZES)
    if len(workload.tasks) == len(Task) == len(workload.model.tasks):
        yield from ((config, num_ranks_of(config) or 0) for config in _forked(workload, num_devices))


def _forked(workload: Workload, num_devices: int) -> Iterator[LayoutConfig]:
    sequences = workload.global_batch_size
    trunk_dps, u_dps, g_dps = (
        _divisors(gcd(*sequences.values())),
        _divisors(sequences[Task.UNDERSTANDING]),
        _divisors(sequences[Task.GENERATION]),
    )
    for trunk_tp, branch_tp, trunk_dp, u_dp, g_dp in product(TENSOR_SIZES, TENSOR_SIZES, trunk_dps, u_dps, g_dps):
        used = trunk_tp * trunk_dp + u_dp + branch_tp * g_dp
        if MIN_USED_SHARE * num_devices <= used <= num_devices and max(u_dp, g_dp) <= 4 * trunk_dp:
            yield LayoutConfig(
                kind="forked",
                trunk=StageShape(tp=trunk_tp, dp=trunk_dp),
                understanding=StageShape(dp=u_dp),
                generation=StageShape(tp=branch_tp, dp=g_dp),
            )


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _sequences(workload: Workload) -> str:
    return ", ".join(f"{task} {number}" for task, number in workload.global_batch_size.items())
