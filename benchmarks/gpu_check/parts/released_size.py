"""Training at the released size (1.08 billion parameters): speed, memory, and where the time goes.

The rate of an 8192^3 product is measured first: model FLOPs (`ufork/model/cost.py`, nothing recomputed counted) are
given over it and over the datasheet's rate.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.measuring import GB, device_of, half_precision, memory_gb, seconds_of
from benchmarks.gpu_check.profiling import host_waits, profiled
from benchmarks.gpu_check.released_model import (
    RATE,
    WARMUPS,
    Rates,
    Sizes,
    known_machine,
    measure_steps,
    precision_on,
    product_rates,
    released_sizes,
    train_config,
)
from benchmarks.gpu_check.report import Report
from benchmarks.stages import build_modules, close_stage, open_stage_of, single_rank
from ufork.errors import first_line
from ufork.model.cost import sequence_cost
from ufork.model.kernels import choose_kernels, use_kernels
from ufork.model.rq_head import RqHead
from ufork.model.unifork import UniFork
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import Stage, make_layout
from ufork.parallel.schedule.in_flight import sequences_in_flight
from ufork.parallel.schedule.schedule import make_schedule
from ufork.parallel.transport.stage_world import World, join_world
from ufork.planning.fused_kernels import FUSED, UNFUSED
from ufork.planning.memory import rank_memory
from ufork.planning.step_time import estimate_step
from ufork.planning.workload import Contents, Workload
from ufork.train.build_stage import nominal_times
from ufork.train.stage import TrainingStage
from ufork.train.step import run_step
from ufork.vocabulary import PackedSequence, Task

Sequences = dict[Task, list[PackedSequence]]

GOAL_MFU = 0.40
"""Share of the measured product rate."""
MOST_MEMORY_ERROR, MOST_TIME_ERROR = 0.10, 0.15
MOST_MEMORY_SHARE = 0.95
"""Of the GPU's memory, for what is planned: the CUDA context and the allocator take the rest."""
SECONDS_FOR_MORE = 25.0
"""Time that another setting may take; with less left, it is skipped."""


def run(report: Report, *, cpu: bool) -> None:
    """Fails if a step raises or its loss is not finite; speed and memory are goals."""
    device, sizes = device_of(cpu=cpu), released_sizes(cpu=cpu)
    rng = np.random.default_rng(0)
    most = {task: [sizes.random.sequence(task, rng) for _ in range(4)] for task in Task}
    one = {task: most[task][:1] for task in Task}
    least_gb = _planned_gb(_workload(sizes, one, device, recompute=True))
    if not cpu and not _fits(least_gb, device):
        report.skip("all", f"the GPU has {memory_gb(device):.0f} GB, and a step is planned to take {least_gb:.0f}")
        report.headline(f"needs a GPU with more than {least_gb:.0f} GB")
        return
    rates = product_rates(report, sizes.product, device)
    with join_world(single_rank(), timeout_seconds=60) as world:
        _whole_model(report, world, sizes, one, most, rates)
        _head(report, sizes, most[Task.GENERATION][0], device)


def _whole_model(report: Report, world: World, sizes: Sizes, one: Sequences, most: Sequences, rates: Rates) -> None:
    config = train_config(1, 1, world.device)
    modules = build_modules(world, sizes.model, sizes.dimensions, config)
    report.figure("parameters", sum(parameter.numel() for parameter in modules.parameters()))
    stage = open_stage_of(world, modules, config, seq_len=sizes.random.seq_len)
    _profile(report, stage, one, world.device)
    for sequences, recompute in ((one, True), (most, True), (one, False), (most, False)):
        number = len(sequences[Task.GENERATION])
        name = f"{number}+{number} sequences, {'' if recompute else 'no '}recomputing"
        if report.seconds_left < SECONDS_FOR_MORE:
            report.skip(name, "too little time left")
            continue
        workload = _workload(sizes, sequences, world.device, recompute=recompute)
        if world.device.type == "cuda" and not _fits(_planned_gb(workload), world.device):
            report.skip(name, f"planned to take {_planned_gb(workload):.0f} GB, more than the GPU has")
            continue
        modules.set_recompute(recompute)
        resized = _with_batch(stage, world, modules, sequences, name, recompute=recompute)
        try:
            figures = measure_steps(resized, sequences, sizes, rates)
        except torch.OutOfMemoryError as error:
            report.skip(name, f"out of memory, though it was planned to fit: {first_line(error)}")
            break  # the engine is in the middle of a step
        figures |= _against_plan(report, name, figures, workload)
        report.figure(name, figures)
        report.check(name, figures["is_finite"], "loss or gradients are not finite")
        share = figures["mfu_of_measured"]
        if world.device.type == "cuda":
            report.goal(f"MFU, {name}", share, f"at least {GOAL_MFU}", met=share >= GOAL_MFU)
        report.headline(f"{number}+{number}{'' if recompute else ' kept'}: MFU {share:.2f}")
    close_stage(stage)


def _with_batch(
    stage: TrainingStage, world: World, modules: UniFork, sequences: Sequences, name: str, *, recompute: bool
) -> TrainingStage:
    """Returns the same engine in a stage with another batch size."""
    batch = {task: len(of_task) for task, of_task in sequences.items()}
    layout = make_layout(LayoutConfig(), num_ranks=world.size, global_batch_size=batch)
    seq_len = len(sequences[Task.UNDERSTANDING][0].token_ids_T)
    times = nominal_times(layout, modules, seq_len, recompute=recompute)
    in_flight = sequences_in_flight(LayoutConfig(), layout)
    actions = make_schedule(layout, times, in_flight=in_flight, trunk_trains=True)[Stage.COLOCATED]
    return replace(stage, bridge=world.open_bridge(layout, name), actions=actions, in_flight=in_flight)


def _workload(sizes: Sizes, sequences: Sequences, device: torch.device, *, recompute: bool) -> Workload:
    """Returns what the planner is asked about: steps of these packed sequences."""
    return Workload(
        model=sizes.model,
        dimensions=sizes.dimensions,
        global_batch_size={task: len(of_task) for task, of_task in sequences.items()},
        seq_len=sizes.random.seq_len,
        num_lanes=sum(map(len, sequences.values())),
        precision=precision_on(device),
        recompute=recompute,
        fused=FUSED if device.type == "cuda" else UNFUSED,
        segment_tokens=sum(sizes.random.text_tokens) // 2 + sizes.random.image_positions,
        contents={task: _contents(of_task) for task, of_task in sequences.items()},
    )


def _contents(sequences: list[PackedSequence]) -> Contents:
    """Returns what the sequences hold on average."""
    return Contents(
        num_positions=sum(len(sequence.image_positions_I) for sequence in sequences) // len(sequences),
        num_targets=sum(sequence.num_targets for sequence in sequences) // len(sequences),
    )


def _planned_gb(workload: Workload) -> float:
    return rank_memory(workload, Stage.COLOCATED, StageShape()).total / GB


def _fits(gigabytes: float, device: torch.device) -> bool:
    return gigabytes < MOST_MEMORY_SHARE * memory_gb(device)


def _against_plan(report: Report, name: str, figures: Mapping[str, Any], workload: Workload) -> dict[str, float]:
    """Returns the planner's figures of the same step, and compares them with what was measured."""
    planned = {"planned_gb": round(_planned_gb(workload), 3)}
    if "allocated_gb" in figures:
        error = planned["planned_gb"] / figures["allocated_gb"] - 1
        wanted = f"within {MOST_MEMORY_ERROR}"
        report.goal(f"planned memory, {name}", error, wanted, met=abs(error) <= MOST_MEMORY_ERROR)
    if machine := known_machine():
        layout = make_layout(LayoutConfig(), num_ranks=1, global_batch_size=workload.global_batch_size)
        planned["planned_seconds"] = round(estimate_step(workload, machine, LayoutConfig(), layout).seconds, 4)
        error = planned["planned_seconds"] / figures["step_seconds"] - 1
        wanted = f"within {MOST_TIME_ERROR}"
        report.goal(f"planned time, {name}", error, wanted, met=abs(error) <= MOST_TIME_ERROR)
    return planned


def _profile(report: Report, stage: TrainingStage, sequences: Sequences, device: torch.device) -> None:
    step = partial(run_step, stage, sequences, RATE)
    for _ in range(WARMUPS):
        step()
    report.figure("profile of a step, 1+1", profiled(step, device))
    if device.type != "cuda":
        report.skip("host waits", "needs CUDA")
        return
    waits = host_waits(step)
    waits["per_sequence"] = waits["count"] / sum(map(len, sequences.values()))
    report.figure("host waits of a step, 1+1", waits)
    report.headline(f"{waits['per_sequence']:.1f} host waits a sequence")


def _head(report: Report, sizes: Sizes, packed: PackedSequence, device: torch.device) -> None:
    """Times the generation head alone, forward and backward, over the operations that `cost.py` counts for it."""
    dtype = half_precision(device)
    torch.manual_seed(0)
    head = RqHead(sizes.model.rq_head, sizes.dimensions, sizes.model.hidden_size).to(device, dtype)
    use_kernels(head, choose_kernels(device))
    codes_IC = packed.codes_IC.to(device)
    hidden = torch.randn(len(codes_IC), sizes.model.hidden_size, device=device, dtype=dtype, requires_grad=True)
    code_sums = torch.randn(*codes_IC.shape, sizes.dimensions.code_width, device=device)
    seconds = seconds_of(lambda: head(hidden, code_sums, codes_IC, 0).backward(), device)
    cost = sequence_cost(sizes.model, sizes.dimensions, packed)
    tflops = 3 * cost.head / seconds / 1e12
    report.figure(
        "generation head", {"ms": round(seconds * 1e3, 2), "tflops": tflops, "share_of_flops": cost.head / cost.forward}
    )
