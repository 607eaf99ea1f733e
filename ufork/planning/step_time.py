"""Estimates how long a step takes in a layout: seconds of each pass from operations and bytes, then a simulation.

workload, machine, layout -> StageTimes -> make_schedule -> simulate -> StepEstimate: seconds, bubbles, bytes sent
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ufork.model.cost import BACKWARD_OVER_FORWARD
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import Layout, Stage
from ufork.parallel.schedule.actions import Pass, StageTimes
from ufork.parallel.schedule.in_flight import sequences_in_flight
from ufork.parallel.schedule.schedule import make_schedule
from ufork.parallel.schedule.simulation import simulate
from ufork.planning.machine import MachineProfile
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

GB = 1e9
GATHERS_PER_LAYER = 3
"""Collectives by which ZeRO-3 gathers a decoder layer's weights (counted with torch's profiler)."""


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
    """Returns seconds of every pass: products, tensor parallelism's sums, and ZeRO's gathers, overlapped or not."""
    seconds = {}
    for stage, shape in layout.shapes.items():
        gather = _gather_seconds(workload, machine, stage, shape)
        for task in layout.global_batch_size:
            if products := workload.forward_flops(stage, task) / shape.tp / machine.flops_per_s:
                sums = _sums_seconds(workload, machine, stage, shape, task)
                forward = products + sums
                backward = products * (BACKWARD_OVER_FORWARD + workload.recompute) + sums * (1 + workload.recompute)
                seconds[stage, task, Pass.FORWARD] = _with_gather(forward, gather, machine)
                seconds[stage, task, Pass.BACKWARD] = _with_gather(backward, gather, machine)
    bandwidth = (
        machine.network_gb_per_s if len(layout.coordinates) > machine.devices_per_node else machine.node_gb_per_s
    )
    transfer = _hidden_bytes(workload) / (bandwidth * GB) + machine.latency_us / 1e6
    return StageTimes(seconds=seconds, transfer_seconds=transfer)


def _with_gather(compute: float, gather: float, machine: MachineProfile) -> float:
    return max(compute, gather) if machine.hides_gathers else compute + gather


def _sums_seconds(workload: Workload, machine: MachineProfile, stage: Stage, shape: StageShape, task: Task) -> float:
    """Seconds of tensor parallelism's sums of hidden states in one pass: two per decoder layer."""
    if shape.tp == 1:
        return 0.0
    ring = 2 * (shape.tp - 1) / shape.tp * _hidden_bytes(workload) / _bandwidth(machine, shape.tp)
    return 2 * workload.num_layers(stage, task) * (ring + machine.collective_latency_us / 1e6)


def _gather_seconds(workload: Workload, machine: MachineProfile, stage: Stage, shape: StageShape) -> float:
    """Seconds in which the weights of a stage are gathered from its other replicas."""
    if shape.dp == 1:
        return 0.0
    missing = (shape.dp - 1) / shape.dp * workload.num_parameters(stage) / shape.tp * workload.value_bytes
    seconds = missing / _bandwidth(machine, shape.size)
    if machine.hides_gathers:  # their latencies overlap too
        return seconds
    gathers = GATHERS_PER_LAYER * max(workload.num_layers(stage, task) for task in workload.tasks)
    return seconds + gathers * machine.collective_latency_us / 1e6


def _update_seconds(workload: Workload, machine: MachineProfile, stage: Stage, shape: StageShape) -> float:
    shard = workload.num_parameters(stage) / (shape.tp * shape.dp)
    touched = shard * 2 * 4 * (1 + workload.moments) + shard * 2 * workload.value_bytes
    return _gather_seconds(workload, machine, stage, shape) + touched / (machine.memory_gb_per_s * GB)


def _bandwidth(machine: MachineProfile, num_ranks: int) -> float:
    """Bytes per second of a collective among `num_ranks` ranks of a stage."""
    link = machine.node_gb_per_s if num_ranks <= machine.devices_per_node else machine.network_gb_per_s
    return (machine.collective_gb_per_s or link) * GB


def _hidden_bytes(workload: Workload) -> int:
    return workload.seq_len * workload.model.hidden_size * workload.value_bytes
