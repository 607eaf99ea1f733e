"""Training at the released size (1.08 billion parameters): speed, memory, and where the time goes.

The rate of an 8192^3 product is measured first: model FLOPs (`ufork/model/cost.py`, nothing recomputed counted) are
given over it and over the datasheet's rate. transformers' Qwen2 of the same body then runs on the same tokens.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.gpu_check.measuring import GB, device_of, half_precision, memory_gb, seconds_of, synchronize
from benchmarks.gpu_check.profiling import host_waits, profiled
from benchmarks.gpu_check.qwen2_peer import PACKED, Qwen2Peer
from benchmarks.gpu_check.report import Report
from benchmarks.random_sequences import RandomSequences
from benchmarks.stages import build_modules, close_stage, open_stage_of
from pipelines.launch.local_ranks import free_port
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.model.cost import sequence_cost
from ufork.model.kernels import choose_kernels, use_kernels
from ufork.model.rq_head import RqHead
from ufork.model.unifork import UniFork
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import Stage, make_layout
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.schedule.in_flight import sequences_in_flight
from ufork.parallel.schedule.schedule import make_schedule
from ufork.parallel.transport.stage_world import World, join_world
from ufork.planning.fused_kernels import FUSED, UNFUSED
from ufork.planning.machine import PROFILES, MachineProfile
from ufork.planning.memory import rank_memory
from ufork.planning.step_time import estimate_step
from ufork.planning.workload import Contents, Workload
from ufork.train.build_stage import nominal_times
from ufork.train.config import GlobalBatchSize, TrainConfig, WandbConfig
from ufork.train.stage import TrainingStage
from ufork.train.step import StepResult, run_step
from ufork.vocabulary import PackedSequence, Task

Sequences = dict[Task, list[PackedSequence]]

GOAL_MFU = 0.40
"""Share of the measured product rate."""
MOST_MEMORY_ERROR, MOST_TIME_ERROR = 0.10, 0.15
RATE = 1e-5
WARMUPS, STEPS = 2, 5
PEER_SEQUENCES = 4
LEAST_MEMORY_GB = 23.0
"""Weights, gradients, fp32 weights and moments are 20 GB."""
SECONDS_FOR_MORE = 25.0
"""Time that another setting may take; with less left, it is skipped."""


@dataclass(frozen=True)
class _Sizes:
    """What is trained."""

    model: ModelConfig
    dimensions: Dimensions
    random: RandomSequences
    product: int
    """Side of the matrices whose product is timed."""


def _sizes(*, cpu: bool) -> _Sizes:
    if cpu:
        head = RqHeadConfig(hidden_size=32, attention_size=64, num_attention_heads=4, num_blocks=1)
        model = ModelConfig(
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=4,
            trunk_layers=1,
            understanding_layers=1,
            generation_layers=1,
            rq_head=head,
        )
        dimensions = Dimensions(vocab_size=512, codebook_size=64, code_width=16, codes_per_position=4)
        random = RandomSequences(dimensions=dimensions, seq_len=128, image_positions=16)
        return _Sizes(model, dimensions, random, product=128)
    dimensions = Dimensions(vocab_size=151_936, codebook_size=16_384, code_width=1024, codes_per_position=4)
    random = RandomSequences(dimensions=dimensions, seq_len=8192, image_positions=729, text_tokens=(30, 90))
    return _Sizes(ModelConfig(), dimensions, random, product=8192)


@dataclass(frozen=True)
class _Rates:
    """Product rates that model FLOPs are compared with, in TFLOP/s."""

    measured: float
    datasheet: float | None

    def shares(self, tflops: float) -> dict[str, float | None]:
        """Returns the shares of both, under the names used in the results."""
        over_datasheet = None if self.datasheet is None else round(tflops / self.datasheet, 4)
        return {"mfu_of_measured": round(tflops / self.measured, 4), "mfu_of_datasheet": over_datasheet}


def run(report: Report, *, cpu: bool) -> None:
    """Fails if a step raises or its loss is not finite; speed and memory are goals."""
    device, sizes = device_of(cpu=cpu), _sizes(cpu=cpu)
    if not cpu and memory_gb(device) < LEAST_MEMORY_GB:
        report.skip("all", f"the GPU has {memory_gb(device):.0f} GB, at least {LEAST_MEMORY_GB:.0f} are needed")
        report.headline(f"needs {LEAST_MEMORY_GB:.0f} GB")
        return
    rates = _product_rates(report, sizes.product, device)
    rng = np.random.default_rng(0)
    most = {task: [sizes.random.sequence(task, rng) for _ in range(4)] for task in Task}
    rank_env = RankEnvironment(rank=0, world_size=1, local_rank=0, master_address="127.0.0.1", master_port=free_port())
    with join_world(rank_env, timeout_seconds=60) as world:
        _whole_model(report, world, sizes, most, rates)
        _head(report, sizes, most[Task.GENERATION][0], device)
        packed = most[Task.UNDERSTANDING][0]
        if report.seconds_left > SECONDS_FOR_MORE:
            _understanding(report, world, sizes, packed, rates)
        else:
            report.skip("understanding alone, and Qwen2", "too little time left")
            return
    _peer(report, sizes, packed, rates, device, cpu=cpu)


def _product_rates(report: Report, side: int, device: torch.device) -> _Rates:
    left, right = (torch.randn(side, side, device=device, dtype=half_precision(device)) for _ in range(2))
    measured = 2 * side**3 / seconds_of(lambda: left @ right, device, repeats=10, warmups=3) / 1e12
    machine = _known_machine()
    datasheet = machine and machine.peak_gflops(_precision(device)) / 1e3
    report.figure("product", {"side": side, "tflops": measured, "datasheet_tflops": datasheet})
    report.headline(f"products {measured:.3g} TFLOP/s")
    return _Rates(measured, datasheet)


def _whole_model(report: Report, world: World, sizes: _Sizes, most: Sequences, rates: _Rates) -> None:
    config = _train_config(1, 1, world.device)
    modules = build_modules(world, sizes.model, sizes.dimensions, config)
    report.figure("parameters", sum(parameter.numel() for parameter in modules.parameters()))
    stage = open_stage_of(world, modules, config, seq_len=sizes.random.seq_len)
    one = {task: most[task][:1] for task in Task}
    _profile(report, stage, one, world.device)
    for sequences, recompute in ((one, True), (most, True), (one, False), (most, False)):
        number = len(sequences[Task.GENERATION])
        name = f"{number}+{number} sequences, {'' if recompute else 'no '}recomputing"
        if report.seconds_left < SECONDS_FOR_MORE:
            report.skip(name, "too little time left")
            continue
        modules.set_recompute(recompute)
        resized = _with_batch(stage, world, modules, sequences, name, recompute=recompute)
        try:
            figures = _measure(resized, sequences, sizes, rates)
        except torch.OutOfMemoryError as error:
            report.skip(name, f"out of memory: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
            continue
        figures |= _against_plan(report, name, figures, sequences, sizes, world.device, recompute=recompute)
        report.figure(name, figures)
        report.check(name, figures["is_finite"], "loss or gradients are not finite")
        share = figures["mfu_of_measured"]
        if world.device.type == "cuda":
            report.goal(f"MFU, {name}", share, f"at least {GOAL_MFU}", met=share >= GOAL_MFU)
        report.headline(f"{number}+{number}{'' if recompute else ' kept'}: MFU {share:.2f}")
    close_stage(stage)


def _train_config(understanding: int, generation: int, device: torch.device) -> TrainConfig:
    return TrainConfig(
        learning_rate=RATE,
        precision=_precision(device),
        activation_checkpointing=True,
        global_batch_size=GlobalBatchSize(understanding=understanding, generation=generation),
        wandb=WandbConfig(mode="disabled"),
    )


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


def _measure(stage: TrainingStage, sequences: Sequences, sizes: _Sizes, rates: _Rates) -> dict[str, Any]:
    """Returns the figures of steps after two others."""
    device, results = stage.world.device, list[StepResult]()

    def step() -> None:
        results.append(run_step(stage, sequences, RATE))

    for _ in range(WARMUPS):
        step()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(step, device, repeats=STEPS, warmups=0)
    every = [sequence for of_task in sequences.values() for sequence in of_task]
    flops = sum(sequence_cost(sizes.model, sizes.dimensions, sequence).training for sequence in every)
    figures: dict[str, Any] = {
        "step_seconds": round(seconds, 4),
        "tokens_per_s": round(len(every) * sizes.random.seq_len / seconds),
        "tflops": flops / seconds / 1e12,
        **rates.shares(flops / seconds / 1e12),
        "losses": results[-1].losses,
        "is_finite": math.isfinite(results[-1].gradient_norm) and all(map(math.isfinite, results[-1].losses.values())),
    }
    if device.type == "cuda":
        figures["allocated_gb"] = round(torch.cuda.max_memory_allocated(device) / GB, 3)
        figures["reserved_gb"] = round(torch.cuda.max_memory_reserved(device) / GB, 3)
    return figures


def _against_plan(
    report: Report,
    name: str,
    figures: dict[str, Any],
    sequences: Sequences,
    sizes: _Sizes,
    device: torch.device,
    *,
    recompute: bool,
) -> dict[str, Any]:
    """Returns the planner's figures of the same step, and compares them with what was measured."""
    batch = {task: len(of_task) for task, of_task in sequences.items()}
    workload = Workload(
        model=sizes.model,
        dimensions=sizes.dimensions,
        global_batch_size=batch,
        seq_len=sizes.random.seq_len,
        num_lanes=sum(batch.values()),
        precision=_precision(device),
        recompute=recompute,
        fused=FUSED if torch.cuda.is_available() else UNFUSED,
        segment_tokens=sum(sizes.random.text_tokens) // 2 + sizes.random.image_positions,
        contents={task: _contents(of_task) for task, of_task in sequences.items()},
    )
    planned = {"planned_gb": round(rank_memory(workload, Stage.COLOCATED, StageShape()).total / GB, 3)}
    if "allocated_gb" in figures:
        error = planned["planned_gb"] / figures["allocated_gb"] - 1
        wanted = f"within {MOST_MEMORY_ERROR}"
        report.goal(f"planned memory, {name}", error, wanted, met=abs(error) <= MOST_MEMORY_ERROR)
    if machine := _known_machine():
        layout = make_layout(LayoutConfig(), num_ranks=1, global_batch_size=batch)
        planned["planned_seconds"] = round(estimate_step(workload, machine, LayoutConfig(), layout).seconds, 4)
        error = planned["planned_seconds"] / figures["step_seconds"] - 1
        wanted = f"within {MOST_TIME_ERROR}"
        report.goal(f"planned time, {name}", error, wanted, met=abs(error) <= MOST_TIME_ERROR)
    return planned


def _contents(sequences: list[PackedSequence]) -> Contents:
    """Returns what the sequences hold on average."""
    return Contents(
        num_positions=sum(len(sequence.image_positions_I) for sequence in sequences) // len(sequences),
        num_targets=sum(sequence.num_targets for sequence in sequences) // len(sequences),
    )


def _precision(device: torch.device) -> Literal["bf16", "fp32"]:
    return "bf16" if half_precision(device) == torch.bfloat16 else "fp32"


def _known_machine() -> MachineProfile | None:
    """Returns the datasheet of this GPU, if the planner has it."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((PROFILES[profile] for profile in PROFILES if profile.upper() in name.split("-")[0].split()), None)


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


def _head(report: Report, sizes: _Sizes, packed: PackedSequence, device: torch.device) -> None:
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
    synchronize(device)


def _understanding(report: Report, world: World, sizes: _Sizes, packed: PackedSequence, rates: _Rates) -> None:
    """Measures a model with the understanding branch alone, whose body is a Qwen2's; no layer is recomputed."""
    model = sizes.model.model_copy(update={"tasks": (Task.UNDERSTANDING,)})
    config = _train_config(PEER_SEQUENCES, 0, world.device).model_copy(update={"activation_checkpointing": False})
    modules = build_modules(world, model, sizes.dimensions, config)
    stage = open_stage_of(world, modules, config, seq_len=sizes.random.seq_len, name="understanding")
    try:
        figures = _measure(stage, {Task.UNDERSTANDING: [packed] * PEER_SEQUENCES}, sizes, rates)
    except torch.OutOfMemoryError as error:
        report.skip("understanding alone", f"out of memory: {str(error).splitlines()[0]}")
        return
    finally:
        close_stage(stage)
    report.figure("understanding alone", figures)
    report.headline(f"understanding {figures['tokens_per_s']:,} tokens/s, MFU {figures['mfu_of_measured']:.2f}")


def _peer(
    report: Report, sizes: _Sizes, packed: PackedSequence, rates: _Rates, device: torch.device, *, cpu: bool
) -> None:
    """Measures transformers' Qwen2, attending inside samples and over whole sequences, then compiled."""
    try:
        peer = Qwen2Peer(sizes.model, sizes.dimensions, device, half_precision(device))
    except ImportError as error:
        report.skip("Qwen2", f"transformers cannot be imported: {error}")
        return
    there = packed.to(str(device))
    for compiled in (False, True):
        if compiled and cpu:
            report.skip("Qwen2, compiled", "not with --cpu")
            return
        for attention in (PACKED, "sdpa"):
            name = f"Qwen2, {attention}{', compiled' if compiled else ''}"
            if report.seconds_left < SECONDS_FOR_MORE:
                report.skip(name, "too little time left")
                continue
            try:
                if compiled and attention == PACKED:
                    peer.compile()
                figures = peer.measure(there, num_sequences=PEER_SEQUENCES, attention=attention)
            except Exception as error:  # another project's code, and a compiler that may be missing
                report.skip(name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                continue
            figures |= rates.shares(figures["tflops"])
            report.figure(name, figures)
            report.headline(f"{name} {figures['tokens_per_s']:,} tokens/s, MFU {figures['mfu_of_measured']:.2f}")
