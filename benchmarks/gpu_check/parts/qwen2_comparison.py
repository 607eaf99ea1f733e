"""A model with the understanding branch alone beside transformers' Qwen2, which has the same body: tokens per second.

Both train on the same packed sequence, and the model FLOPs of each are counted in the same way.
"""

import numpy as np
import torch

from benchmarks.gpu_check.measuring import device_of, half_precision, memory_gb
from benchmarks.gpu_check.qwen2_peer import PACKED, Qwen2Peer
from benchmarks.gpu_check.released_model import (
    Rates,
    Sizes,
    measure_steps,
    product_rates,
    released_sizes,
    train_config,
)
from benchmarks.gpu_check.report import Report
from benchmarks.stages import build_modules, close_stage, open_stage_of, single_rank
from ufork.errors import first_line
from ufork.parallel.transport.stage_world import World, join_world
from ufork.vocabulary import PackedSequence, Task

NUM_SEQUENCES = 4
"""Packed sequences of a step; all are the same one."""
LEAST_MEMORY_GB = 30.0
"""The planner expects 18 to 22 GB of ufork's model: weights and moments of half a billion parameters, and what 24
layers keep of 8192 tokens. Qwen2's plain layers keep more."""
SECONDS_FOR_MORE = {False: 25.0, True: 45.0}
"""Time that another setting may take, not compiled or compiled; with less left, it is skipped."""


def run(report: Report, *, cpu: bool) -> None:
    """Fails if a step of ufork's model raises; the rest is for comparison."""
    device, sizes = device_of(cpu=cpu), released_sizes(cpu=cpu)
    if not cpu and memory_gb(device) < LEAST_MEMORY_GB:
        report.skip("all", f"the GPU has {memory_gb(device):.0f} GB, at least {LEAST_MEMORY_GB:.0f} are needed")
        report.headline(f"needs {LEAST_MEMORY_GB:.0f} GB")
        return
    rates = product_rates(report, sizes.product, device)
    packed = sizes.random.sequence(Task.UNDERSTANDING, np.random.default_rng(0))
    with join_world(single_rank(), timeout_seconds=60) as world:
        _understanding(report, world, sizes, packed, rates)
    _peer(report, sizes, packed, rates, device, cpu=cpu)


def _understanding(report: Report, world: World, sizes: Sizes, packed: PackedSequence, rates: Rates) -> None:
    """Measures a model with the understanding branch alone, whose body is a Qwen2's; no layer is recomputed."""
    model = sizes.model.model_copy(update={"tasks": (Task.UNDERSTANDING,)})
    config = train_config(NUM_SEQUENCES, 0, world.device).model_copy(update={"activation_checkpointing": False})
    modules = build_modules(world, model, sizes.dimensions, config)
    stage = open_stage_of(world, modules, config, seq_len=sizes.random.seq_len, name="understanding")
    try:
        figures = measure_steps(stage, {Task.UNDERSTANDING: [packed] * NUM_SEQUENCES}, sizes, rates)
    except torch.OutOfMemoryError as error:
        report.skip("understanding alone", f"out of memory: {first_line(error)}")
        return
    finally:
        close_stage(stage)
    report.figure("understanding alone", figures)
    report.check("understanding alone", figures["is_finite"], "loss or gradients are not finite")
    report.headline(f"understanding {figures['tokens_per_s']:,} tokens/s, MFU {figures['mfu_of_measured']:.2f}")


def _peer(
    report: Report, sizes: Sizes, packed: PackedSequence, rates: Rates, device: torch.device, *, cpu: bool
) -> None:
    """Measures transformers' Qwen2, attending inside samples and over whole sequences, then compiled."""
    try:
        peer = Qwen2Peer(sizes.model, sizes.dimensions, device, half_precision(device))
    except ImportError as error:
        report.skip("Qwen2", f"transformers cannot be imported: {error}")
        return
    there = packed.to(device)
    for compiled in (False, True):
        if compiled and cpu:
            report.skip("Qwen2, compiled", "not with --cpu")
            return
        for attention in (PACKED, "sdpa"):
            name = f"Qwen2, {attention}{', compiled' if compiled else ''}"
            if report.seconds_left < SECONDS_FOR_MORE[compiled]:
                report.skip(name, "too little time left")
                continue
            try:
                if compiled and attention == PACKED:
                    peer.compile()
                figures = peer.measure(there, num_sequences=NUM_SEQUENCES, attention=attention)
            except Exception as error:  # another project's code, and a compiler that may be missing
                report.skip(name, f"{type(error).__name__}: {first_line(error)}")
                continue
            figures |= rates.shares(figures["tflops"])
            report.figure(name, figures)
            report.headline(f"{name} {figures['tokens_per_s']:,} tokens/s, MFU {figures['mfu_of_measured']:.2f}")
