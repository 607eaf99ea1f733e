"""Estimates how long a step takes in a layout: seconds of each pass from operations and bytes, then a simulation.

workload, machine, layout -> PassTerms -> StageTimes -> make_schedule -> simulate -> StepEstimate

A pass takes as long as its kernels one after the other, or as the host needs to start them, whichever is longer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from ufork.model.cost import BACKWARD_OVER_FORWARD
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.engine.muon import newton_schulz_flops
from ufork.parallel.layout import Layout, Stage
from ufork.parallel.schedule.actions import Pass, StageTimes
from ufork.parallel.schedule.in_flight import sequences_in_flight
from ufork.parallel.schedule.schedule import make_schedule
from ufork.parallel.schedule.simulation import simulate
from ufork.planning.element_wise import element_wise
from ufork.planning.machine import MachineProfile
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

GB = 1e9
GATHERS_PER_LAYER = 3
"""Collectives by which ZeRO-3 gathers a decoder layer's weights (counted with torch's profiler)."""


@dataclass(frozen=True, kw_only=True)
class PassTerms:
    """Seconds of one pass of a packed sequence through a stage, by what takes them."""

    products: float
    """Matrix products."""
    attention: float
    """Attention between tokens."""
    element_wise: float
    """Everything else that the device computes: norms, activations, dropout, losses."""
    sums: float
    """Sums of hidden states over tensor-parallel ranks."""
    launches: float
    """The host's time to start all of these."""
    gathers: float
    """Gathers of ZeRO's weights."""
    hides_gathers: bool

    @property
    def device(self) -> float:
        """All kernels, one after the other."""
        return self.products + self.attention + self.element_wise + self.sums

    @property
    def seconds(self) -> float:
        """The whole pass."""
        busy = max(self.device, self.launches)
        return max(busy, self.gathers) if self.hides_gathers else busy + self.gathers


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """A step of the whole job."""

    seconds: float
    bubble: Mapping[Stage, float]
    """Idle share of each stage during the passes."""
    update_seconds: float
    """Seconds of the gradients' reduction and the optimizer's update, included in `seconds`."""
    p2p_bytes: int
    """Bytes sent between stages, in both directions, by all replicas."""


def estimate_step(workload: Workload, machine: MachineProfile, config: LayoutConfig, layout: Layout) -> StepEstimate:
    """Simulates a step and adds the update."""
    times = stage_times(workload, machine, layout)
    simulation = simulate(make_schedule(layout, times, in_flight=sequences_in_flight(config, layout)), layout, times)
    update = max(_update_seconds(workload, machine, stage, shape) for stage, shape in layout.shapes.items())
    sequences = 0 if Stage.COLOCATED in layout.shapes else sum(layout.global_batch_size.values())
    return StepEstimate(
        seconds=simulation.seconds + update,
        bubble={stage: simulation.idle_share(stage) for stage in layout.shapes},
        update_seconds=update,
        p2p_bytes=2 * sequences * _hidden_bytes(workload),
    )


def stage_times(workload: Workload, machine: MachineProfile, layout: Layout) -> StageTimes:
    """Returns the seconds of every pass and of a transfer between stages."""
    seconds = {}
    for stage, shape in layout.shapes.items():
        for task in layout.global_batch_size:
            if workload.forward_flops(stage, task):
                for direction in Pass:
                    terms = pass_terms(workload, machine, stage, shape, task, direction)
                    seconds[stage, task, direction] = terms.seconds
    bandwidth = (
        machine.network_gb_per_s if len(layout.coordinates) > machine.devices_per_node else machine.node_gb_per_s
    )
    transfer = _hidden_bytes(workload) / (bandwidth * GB) + machine.latency_us / 1e6
    return StageTimes(seconds=seconds, transfer_seconds=transfer)


def step_terms(workload: Workload, machine: MachineProfile, layout: Layout, stage: Stage) -> dict[str, float]:
    """Returns the seconds of a step that each rank of `stage` is busy, by what takes them.

    Gathers count as far as nothing hides them, and launches as far as they take longer than the kernels.
    """
    shape, total = layout.shapes[stage], dict.fromkeys((*(f.name for f in fields(PassTerms)), "update"), 0.0)
    del total["hides_gathers"]
    for task, sequences in layout.global_batch_size.items():
        for direction in Pass:
            if not workload.forward_flops(stage, task):
                continue
            terms = pass_terms(workload, machine, stage, shape, task, direction)
            for name in ("products", "attention", "element_wise", "sums"):
                total[name] += getattr(terms, name) * sequences / shape.dp
            total["launches"] += max(0, terms.launches - terms.device) * sequences / shape.dp
            total["gathers"] += (terms.seconds - max(terms.device, terms.launches)) * sequences / shape.dp
    return total | {"update": _update_seconds(workload, machine, stage, shape)}


def pass_terms(
    workload: Workload, machine: MachineProfile, stage: Stage, shape: StageShape, task: Task, direction: Pass
) -> PassTerms:
    """Returns the seconds of one pass of a packed sequence of `task` through a replica of `stage`."""
    is_forward = direction is Pass.FORWARD
    times, again = (1, 0) if is_forward else (BACKWARD_OVER_FORWARD, int(workload.recompute))
    attention = workload.attention_flops(stage, task)
    operations = times * workload.forward_flops(stage, task) + again * workload.recomputed_flops(stage, task)
    attention *= times + again
    rate, kernels = machine.flops_per_s(workload.precision), machine.kernels
    if kernels and not is_forward:
        operations += workload.logits_flops(stage, task)
    attention_rate = kernels.attention_gflops * 1e9 if kernels and kernels.attention_gflops else rate
    work = element_wise(workload, stage, task, direction, tp=shape.tp)
    return PassTerms(
        products=(operations - attention) / shape.tp / rate,
        attention=attention / shape.tp / attention_rate,
        element_wise=work.num_bytes / machine.element_bytes_per_s if kernels else 0.0,
        sums=_sums_seconds(workload, machine, stage, shape, task) * (1 + again),
        launches=work.num_operations * kernels.launch_us / 1e6 if kernels else 0.0,
        gathers=0.0 if _keeps_weights(workload, stage, shape) else _gather_seconds(workload, machine, stage, shape),
        hides_gathers=machine.hides_gathers,
    )


def _sums_seconds(workload: Workload, machine: MachineProfile, stage: Stage, shape: StageShape, task: Task) -> float:
    """Seconds of tensor parallelism's sums of hidden states in one pass: two per decoder layer."""
    if shape.tp == 1:
        return 0.0
    ring = 2 * (shape.tp - 1) / shape.tp * _hidden_bytes(workload) / _bandwidth(machine, shape.tp)
    return 2 * workload.num_layers(stage, task) * (ring + machine.collective_latency_us / 1e6)


def _keeps_weights(workload: Workload, stage: Stage, shape: StageShape) -> bool:
    """Whether replicas keep the weights whole; with `reduce_each_backward` they do not, which is not counted."""
    return LayoutConfig().keeps_weights(workload.num_parameters(stage) // shape.tp, shape.dp)


def _gather_seconds(workload: Workload, machine: MachineProfile, stage: Stage, shape: StageShape) -> float:
    """Seconds in which the weights of a stage are gathered from its other replicas."""
    if shape.dp == 1:
        return 0.0
    missing = (shape.dp - 1) / shape.dp * workload.num_parameters(stage) / shape.tp * workload.value_bytes
    seconds = missing / _bandwidth(machine, shape.size)
    if machine.hides_gathers:  # their latencies overlap too
        return seconds
    by_layer = GATHERS_PER_LAYER * max(workload.num_layers(stage, task) for task in workload.tasks)
    collectives = 1 if _keeps_weights(workload, stage, shape) else by_layer
    return seconds + collectives * machine.collective_latency_us / 1e6


def _update_seconds(workload: Workload, machine: MachineProfile, stage: Stage, shape: StageShape) -> float:
    """Seconds between the last backward pass and the next step."""
    whole, value = workload.num_parameters(stage) / shape.tp, workload.value_bytes
    # read and written by the bucket, by the buffer that is reduced, and by the shard; with one replica only emptied
    reduced = whole * (6 if shape.dp > 1 else 1) * value
    fp32 = 4
    moments = workload.num_moments(stage) / workload.num_parameters(stage)
    updated = (2 + moments) * fp32 + (1 + moments) * fp32  # with the gradient, which is only read
    converted = 2 * value + (value + fp32) + 2 * fp32 + (fp32 + value)  # gradient joined, in fp32, clipped; weights
    norm = value + fp32
    touched = reduced + whole / shape.dp * (updated + converted + norm)
    seconds = _gather_seconds(workload, machine, stage, shape) + touched / machine.element_bytes_per_s
    return seconds + _muon_seconds(workload, machine, stage, shape)


def _muon_seconds(workload: Workload, machine: MachineProfile, stage: Stage, shape: StageShape) -> float:
    """Seconds of Muon's products, which the ranks of the stage share, and of bringing the matrices there and back."""
    matrices = workload.muon_matrices(stage)
    products = sum(map(newton_schulz_flops, matrices)) / machine.flops_per_s(workload.precision)
    sent = 2 * sum(map(math.prod, matrices)) * workload.value_bytes * (shape.size - 1) / shape.size
    return (products + sent / _bandwidth(machine, shape.size)) / shape.size


def _bandwidth(machine: MachineProfile, num_ranks: int) -> float:
    """Bytes per second of a collective among `num_ranks` ranks of a stage."""
    link = machine.node_gb_per_s if num_ranks <= machine.devices_per_node else machine.network_gb_per_s
    return (machine.collective_gb_per_s or link) * GB


def _hidden_bytes(workload: Workload) -> int:
    return workload.seq_len * workload.model.hidden_size * workload.value_bytes
